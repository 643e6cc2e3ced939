"""Does a predicted LoRA carry the style, and only the style? Measured on styles that no training ever saw.

    python -m bench.style --json [--styles 128] [--sheet PATH]

For every held-out style: four reference pictures, and pictures sampled from prompts for other, held-out contents
with no LoRA, with the predicted one, and with the one predicted for another style. How both figures are measured,
and why one can trust them: docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from i2l_core.demo import files
from i2l_core.demo.backbone import LayerPair
from i2l_core.demo.content import Content
from i2l_core.demo.judge import Judge, Verdict, style_distance
from i2l_core.demo.pool import PoolConfig, open_pool
from i2l_core.demo.prompts import content_prompt, tokenise
from i2l_core.demo.sampler import Sampling, sample
from i2l_core.predictors.checkpoint import load_predictor

_REFERENCES, _PROMPTS, _SEED = 4, 2, 3
_BLOCK = 16  # styles sampled together


@dataclass(frozen=True)
class Case:
    """What one condition made: pictures (styles * prompts, 3, H, W), style-major."""

    pictures: Tensor
    style_distance: Tensor  # (styles * prompts,)
    right: Tensor  # (styles * prompts, 3) subject, count, place

    def figures(self) -> dict[str, float]:
        return {
            "style_distance": round(float(self.style_distance.mean()), 4),
            "prompt_accuracy": round(float(self.right.float().mean()), 4),
            "all_right": round(float(self.right.all(1).float().mean()), 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--styles", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="also save the pictures of the first styles, to look at")
    options = parser.parse_args()
    result = run(options.styles, Sampling(options.steps, options.cfg), options.sheet, not options.json)
    print(json.dumps(result))


@torch.inference_mode()
def run(styles: int, sampling: Sampling, sheet: Path | None, talk: bool) -> dict:
    started = time.time()
    pool = open_pool(Path(".runs/pool"), PoolConfig(styles, _REFERENCES + _PROMPTS, _SEED, held_out=True))
    judge = files.load_judge()
    pictures = (
        torch.from_numpy(pool.pictures.copy()).permute(0, 1, 4, 2, 3).float() / 255
    )  # -> (S, P, 3, H, W)
    references, real = pictures[:, :_REFERENCES], pictures[:, _REFERENCES:].flatten(0, 1)
    targets = [c for row in pool.contents for c in row[_REFERENCES:]]
    loras = predict(references)
    context = _context(targets)
    made = {
        "none": None,
        "predicted": loras,
        "wrong": {k: (d.roll(1, 0), u.roll(1, 0)) for k, (d, u) in loras.items()},
    }
    seen = [judge(references[:, i]) for i in range(_REFERENCES)]
    cases: dict[str, Case] = {}
    for name, lora in made.items():
        out = paint(context, lora, styles, sampling)
        cases[name] = _case(judge, out, seen, targets)
        if talk:
            sys.stderr.write(f"{name}: {cases[name].figures()}  {time.time() - started:.0f} s\n")
    cases["real"] = _case(judge, real, seen, targets)
    other = _case(judge, real.unflatten(0, (styles, -1)).roll(1, 0).flatten(0, 1), seen, targets)
    if sheet is not None:
        _save_sheet(sheet, references, [cases[n].pictures.unflatten(0, (styles, -1)) for n in made])
    return {
        "styles": styles,
        **{name: case.figures() for name, case in cases.items()},
        "ranking": round(float((cases["real"].style_distance < other.style_distance).float().mean()), 4),
        "other_style_distance": other.figures()["style_distance"],
        "predicted_below_none": round(1 - _ratio(cases["predicted"], cases["none"]), 4),
        "predicted_below_wrong": round(1 - _ratio(cases["predicted"], cases["wrong"]), 4),
        "sampling": {"steps": sampling.steps, "cfg": sampling.cfg},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seconds": round(time.time() - started, 1),
    }


def predict(references: Tensor) -> dict[str, LayerPair]:
    """References (S, N, 3, H, W) -> one LoRA per style, stacked: weight -> (down (S, k, in), up (S, out, k))."""
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    encoder, predictor = loaded.encoder.float(), loaded.predictor.float()
    parts = []
    for block in references.split(_BLOCK):
        tokens = encoder(block.flatten(0, 1) * 2 - 1).unflatten(0, block.shape[:2]).flatten(1, 2)
        parts.append({t.weight: pair for t, pair in predictor(tokens).layers().items()})
    return {k: (torch.cat([p[k][0] for p in parts]), torch.cat([p[k][1] for p in parts])) for k in parts[0]}


def paint(context: Tensor, lora: dict[str, LayerPair] | None, styles: int, sampling: Sampling) -> Tensor:
    """Sampled pictures (S * P, 3, H, W); the noise is the same for every condition."""
    backbone, text = files.load_backbone()
    _, decoder = files.load_vae()
    noise = torch.randn(len(context), 16, 16, 16, generator=torch.Generator().manual_seed(_SEED))
    negative = text(torch.tensor([tokenise("")]))
    words, per_style, out = text(context), len(context) // styles, []
    for start in range(0, styles, _BLOCK):
        rows = slice(start * per_style, (start + _BLOCK) * per_style)
        part = (
            None
            if lora is None
            else {k: (d[start : start + _BLOCK], u[start : start + _BLOCK]) for k, (d, u) in lora.items()}
        )
        block = noise[rows]
        latents = sample(
            backbone, block, words[rows], negative.expand(len(block), -1, -1), sampling, part, part
        )
        out.append(decoder(latents).clamp(0, 1))
    return torch.cat(out)


def _context(targets: list[Content]) -> Tensor:
    return torch.tensor([tokenise(content_prompt(c)) for c in targets])


def _case(judge: Judge, pictures: Tensor, references: list[Verdict], targets: list[Content]) -> Case:
    verdict = judge(pictures)
    per_style = len(pictures) // len(references[0].subject)
    distances = []
    for reference in references:
        repeated = Verdict(
            *(getattr(reference, f).repeat_interleave(per_style, 0) for f in Verdict.__dataclass_fields__)
        )
        distances.append(style_distance(verdict, repeated))
    right = [
        getattr(verdict, f).argmax(1) == torch.tensor([getattr(c, f) for c in targets])
        for f in ("subject", "count", "place")
    ]
    return Case(pictures, torch.stack(distances).mean(0), torch.stack(right, 1))


def _ratio(a: Case, b: Case) -> float:
    return float(a.style_distance.mean() / b.style_distance.mean())


def _save_sheet(path: Path, references: Tensor, columns: list[Tensor], rows: int = 12) -> None:
    """Four references, then two pictures of each condition, one style a row."""
    strips = []
    for s in range(min(rows, len(references))):
        pictures = [*references[s], *(p for column in columns for p in column[s])]
        strips.append(torch.cat([torch.nn.functional.pad(p, (2, 2, 2, 2), value=1.0) for p in pictures], 2))
    sheet = torch.cat(strips, 1).permute(1, 2, 0)  # CHW -> HWC
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(path)


if __name__ == "__main__":
    main()
