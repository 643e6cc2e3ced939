"""Does a predicted LoRA carry the style, and only the style? Measured on styles that no training ever saw.

    python -m bench.style --json [--styles 128] [--sheet PATH]
    python -m bench.style --guidance --json

For every held-out style: four reference pictures, and pictures sampled from prompts for other, held-out contents
with no LoRA, with the predicted one, and with the one predicted for another style. With --guidance: the predicted
one on both sides of CFG against asymmetric guidance (the LoRA of gray pictures on the negative side), at cfg 4
and 7. How both figures are measured, and why one can trust them: docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from i2l_core.demo import files
from i2l_core.demo.backbone import LayerPair
from i2l_core.demo.content import Content
from i2l_core.demo.judge import Verdict, style_distance
from i2l_core.demo.pool import PoolConfig, open_pool
from i2l_core.demo.prompts import content_prompt, tokenise
from i2l_core.demo.sampler import Sampling, sample
from i2l_core.images import GRAY
from i2l_core.predictors.checkpoint import load_predictor

_REFERENCES, _PROMPTS, _SEED = 4, 2, 3
_BLOCK = 16  # styles sampled together
_GUIDANCE = (4.0, 7.0)
_RESAMPLES = 10_000  # of the bootstrap

LoRAs = Mapping[str, LayerPair]  # weight -> (down (S, k, in), up (S, out, k)), one LoRA per style


@dataclass(frozen=True)
class Case:
    """What one condition made, style-major."""

    pictures: Tensor  # (styles * prompts, 3, H, W)
    style_distance: Tensor  # (styles * prompts,)
    right: Tensor  # (styles * prompts, 3) subject, count, place

    def figures(self) -> dict[str, float]:
        return {
            "style_distance": round(float(self.style_distance.mean()), 4),
            "prompt_accuracy": round(float(self.right.float().mean()), 4),
            "all_right": round(float(self.right.all(1).float().mean()), 4),
        }


class Bench:
    """The held-out styles, the tiny world's networks, and the judge; each loaded once."""

    def __init__(self, styles: int, talk: bool) -> None:
        self.started = time.time()
        self.styles = styles
        self._talk = talk
        pool = open_pool(Path(".runs/pool"), PoolConfig(styles, _REFERENCES + _PROMPTS, _SEED, held_out=True))
        pictures = torch.from_numpy(pool.pictures.copy()).permute(0, 1, 4, 2, 3).float() / 255
        self.references = pictures[:, :_REFERENCES]  # (S, N, 3, H, W)
        self.real = pictures[:, _REFERENCES:].flatten(0, 1)
        self.targets = [content for row in pool.contents for content in row[_REFERENCES:]]
        self._backbone, text = files.load_backbone()
        _, self._decoder = files.load_vae()
        self.verdict = files.load_judge()
        self.seen = [self.verdict(self.references[:, i]) for i in range(_REFERENCES)]
        self._words = text(_context(self.targets))
        self._no_words = text(torch.tensor([tokenise("")]))

    def paint(self, name: str, sampling: Sampling, positive: LoRAs | None, negative: LoRAs | None) -> Case:
        """Pictures with a LoRA per style on each side of CFG, judged. The noise is the same for every case."""
        noise = torch.randn(len(self._words), 16, 16, 16, generator=torch.Generator().manual_seed(_SEED))
        out = []
        for start in range(0, self.styles, _BLOCK):
            rows = slice(start * _PROMPTS, (start + _BLOCK) * _PROMPTS)
            block, words = noise[rows], self._words[rows]
            none = self._no_words.expand(len(block), -1, -1)
            sides = (_rows(lora, start) for lora in (positive, negative))
            latents = sample(self._backbone, block, words, none, sampling, *sides)
            out.append(self._decoder(latents).clamp(0, 1))
        case = self.judge(torch.cat(out))
        if self._talk:
            sys.stderr.write(f"{name}: {case.figures()}  {time.time() - self.started:.0f} s\n")
        return case

    def judge(self, pictures: Tensor) -> Case:
        """`pictures` (S * P, 3, H, W) against the references of their styles and their prompts."""
        verdict = self.verdict(pictures)
        distances = []
        for reference in self.seen:
            fields = Verdict.__dataclass_fields__
            repeated = (getattr(reference, f).repeat_interleave(_PROMPTS, 0) for f in fields)
            distances.append(style_distance(verdict, Verdict(*repeated)))
        right = [
            getattr(verdict, f).argmax(1) == torch.tensor([getattr(c, f) for c in self.targets])
            for f in ("subject", "count", "place")
        ]
        return Case(pictures, torch.stack(distances).mean(0), torch.stack(right, 1))

    def about(self) -> dict[str, Any]:
        return {
            "styles": self.styles,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "seconds": round(time.time() - self.started, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--guidance", action="store_true", help="asymmetric against symmetric guidance")
    parser.add_argument("--styles", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0, help="without --guidance, which has its own")
    parser.add_argument("--sheet", type=Path, help="also save the pictures of the first styles, to look at")
    options = parser.parse_args()
    with torch.inference_mode():
        bench = Bench(options.styles, not options.json)
        if options.guidance:
            cases, result = guidance(bench, options.steps)
        else:
            cases, result = predicted(bench, Sampling(options.steps, options.cfg))
    if options.sheet is not None:
        _save_sheet(options.sheet, bench.references, cases)
    print(json.dumps(result))


def predicted(bench: Bench, sampling: Sampling) -> tuple[list[Case], dict[str, Any]]:
    loras = predict(bench.references)
    made: dict[str, LoRAs | None] = {
        "none": None,
        "predicted": loras,
        "wrong": {k: (d.roll(1, 0), u.roll(1, 0)) for k, (d, u) in loras.items()},
    }
    cases = {name: bench.paint(name, sampling, lora, lora) for name, lora in made.items()}
    real = bench.judge(bench.real)
    other = bench.judge(bench.real.unflatten(0, (bench.styles, -1)).roll(1, 0).flatten(0, 1))
    result = {
        **{name: case.figures() for name, case in (*cases.items(), ("real", real))},
        "ranking": round(float((real.style_distance < other.style_distance).float().mean()), 4),
        "other_style_distance": other.figures()["style_distance"],
        "predicted_below_none": round(1 - _ratio(cases["predicted"], cases["none"]), 4),
        "predicted_below_wrong": round(1 - _ratio(cases["predicted"], cases["wrong"]), 4),
        "sampling": {"steps": sampling.steps, "cfg": sampling.cfg},
    }
    return list(cases.values()), {**result, **bench.about()}


def guidance(bench: Bench, steps: int) -> tuple[list[Case], dict[str, Any]]:
    loras = predict(bench.references)
    gray = torch.full_like(bench.references[:1], GRAY)
    neutral = {
        k: (d.expand(bench.styles, -1, -1), u.expand(bench.styles, -1, -1))
        for k, (d, u) in predict(gray).items()
    }
    all_cases, result = [], {}
    for cfg in _GUIDANCE:
        sampling = Sampling(steps, cfg)
        symmetric = bench.paint(f"symmetric, cfg {cfg:g}", sampling, loras, loras)
        asymmetric = bench.paint(f"asymmetric, cfg {cfg:g}", sampling, loras, neutral)
        all_cases += [symmetric, asymmetric]
        result[f"cfg {cfg:g}"] = {
            "symmetric": symmetric.figures(),
            "asymmetric": asymmetric.figures(),
            "style_distance_change": paired(asymmetric.style_distance, symmetric.style_distance),
            "prompt_accuracy_change": paired(
                asymmetric.right.float().mean(1), symmetric.right.float().mean(1)
            ),
        }
    return all_cases, {**result, "steps": steps, **bench.about()}


def paired(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Mean of a - b over styles with its bootstrap 95 % interval: styles are drawn, with all their prompts."""
    change = (a - b).view(-1, _PROMPTS).mean(1)
    drawn = torch.randint(
        len(change), (_RESAMPLES, len(change)), generator=torch.Generator().manual_seed(_SEED)
    )
    low, high = change[drawn].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"mean": round(float(change.mean()), 4), "interval_95": [round(low, 4), round(high, 4)]}


def predict(references: Tensor) -> dict[str, LayerPair]:
    """References (S, N, 3, H, W) -> one LoRA per style, stacked: weight -> (down (S, k, in), up (S, out, k))."""
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    encoder, predictor = loaded.encoder.float(), loaded.predictor.float()
    parts = []
    for block in references.split(_BLOCK):
        tokens = encoder(block.flatten(0, 1) * 2 - 1).unflatten(0, block.shape[:2]).flatten(1, 2)
        parts.append({t.weight: pair for t, pair in predictor(tokens).layers().items()})
    return {k: (torch.cat([p[k][0] for p in parts]), torch.cat([p[k][1] for p in parts])) for k in parts[0]}


def _rows(loras: LoRAs | None, start: int) -> dict[str, LayerPair] | None:
    if loras is None:
        return None
    return {k: (d[start : start + _BLOCK], u[start : start + _BLOCK]) for k, (d, u) in loras.items()}


def _context(targets: list[Content]) -> Tensor:
    return torch.tensor([tokenise(content_prompt(c)) for c in targets])


def _ratio(a: Case, b: Case) -> float:
    return float(a.style_distance.mean() / b.style_distance.mean())


def _save_sheet(path: Path, references: Tensor, cases: list[Case], rows: int = 12) -> None:
    """Four references, then two pictures of each condition, one style a row."""
    columns = [case.pictures.unflatten(0, (len(references), -1)) for case in cases]
    strips = []
    for s in range(min(rows, len(references))):
        pictures = [*references[s], *(p for column in columns for p in column[s])]
        strips.append(torch.cat([torch.nn.functional.pad(p, (2, 2, 2, 2), value=1.0) for p in pictures], 2))
    sheet = torch.cat(strips, 1).permute(1, 2, 0)  # CHW -> HWC
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(path)


if __name__ == "__main__":
    main()
