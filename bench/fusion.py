"""Mixing styles, measured in the demo world: whose style wins, and is every control as monotone as it looks?

    python -m bench.fusion --json [--styles 32] [--sheet PATH]

Held-out styles in pairs (A, B). Everything is a function of the same references, prompts and noise:
- two references of different styles: one joint prediction against fusions of two single predictions;
- a weight of 0 to 4 on the reference of B;
- the way from A to B;
- spectral decay, and the dominant direction alone against all the others: which carries style, which content;
- two styles in two halves of a picture, live in the real host: how much of each arrives inside and outside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2l_core.demo import files
from i2l_core.demo.judge import Verdict, style_distance, style_parts
from i2l_core.demo.prompts import content_prompt
from i2l_core.demo.sampler import Sampling
from i2l_core.lora import LoRA, LowRank, Target
from i2l_core.mixing import fuse
from i2l_core.mixing.slerp import Slerp, interpolate
from i2l_core.predictors.query.file import load_predictor
from tools.host import import_host

from ._world import Bench, Case, LoRAs, predict, save_sheet

_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
_WAY = (0.0, 0.25, 0.5, 0.75, 1.0)
_ALPHAS = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)
_REGION_STEPS = 12
_MARGIN = 1 / 8  # of the width, on each side of the border between two regions: not measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--styles", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--regions", type=int, default=8, help="pairs of styles painted side by side")
    parser.add_argument("--sheet", type=Path, help="also save the pictures of the first styles, to look at")
    options = parser.parse_args()
    with torch.inference_mode():
        mix = Mix(Bench(options.styles, not options.json), Sampling(options.steps, 3.0))
        result = {
            "two_references": mix.two_references(),
            "weight_of_b": mix.weights(),
            "from_a_to_b": mix.way(),
            "spectral": mix.spectral(),
        }
        with tempfile.TemporaryDirectory() as folder:
            result["regions"] = regions(mix, options.regions, Path(folder))
        if options.sheet is not None:
            save_sheet(options.sheet, mix.bench.references, mix.painted)
    print(json.dumps({**result, **mix.bench.about()}))


class Mix:
    """Pairs of styles: B is A's neighbour in the list. Tokens and single LoRAs are made once."""

    def __init__(self, bench: Bench, sampling: Sampling) -> None:
        self.bench, self.sampling = bench, sampling
        self.painted: list[Case] = []
        loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
        self._predictor = loaded.predictor.float()
        self._tokens = loaded.encoder.float()(bench.references[:, 0] * 2 - 1)  # (S, T, D) of one picture each
        self._one = self._joint(self._tokens)

    def two_references(self) -> dict[str, Any]:
        """`share_of_b`: 0 all of A, 1 all of B. By factor: how often B's wins, and how undecided that is."""
        both = torch.cat([self._tokens, self._tokens.roll(-1, 0)], 1)
        found = {
            "A alone": self._one,
            "joint": self._joint(both),
            "concat": self._fused(lambda a, b: fuse.concat([a, b], [0.5, 0.5])),
            "interpolate": self._fused(lambda a, b: interpolated(a, b, 0.5)),
            "svd, rank 4": self._fused(lambda a, b: fuse.svd([a, b], [0.5, 0.5], rank=4)[0]),
            "spectral, alpha 1": self._fused(lambda a, b: fuse.spectral([a, b], [0.5, 0.5], 1.0)[0]),
        }
        return {name: self._between(name, loras, factors=True) for name, loras in found.items()}

    def weights(self) -> dict[str, Any]:
        both = torch.cat([self._tokens, self._tokens.roll(-1, 0)], 1)
        one = torch.zeros(self._tokens.shape[:2])
        found = {}
        for weight in _WEIGHTS:
            bias = torch.cat([one, one + torch.tensor(weight).log()], 1)
            found[f"{weight:g}"] = self._between(f"weight {weight:g}", self._joint(both, bias))
        return _with_trend(found)

    def way(self) -> dict[str, Any]:
        found = {
            f"{t:g}": self._between(f"t {t:g}", self._fused(lambda a, b, t=t: interpolated(a, b, t)))
            for t in _WAY
        }
        return _with_trend(found)

    def spectral(self) -> dict[str, Any]:
        """One style from all its references, faded; and its dominant direction taken alone and taken out."""
        whole = predict(self.bench.references)

        def each(change: Callable[[LoRA], LoRA]) -> LoRAs:
            return stacked([change(single(whole, i)) for i in range(self.bench.styles)])

        def dominant(lora: LoRA) -> LoRA:
            return fuse.svd([lora], [1.0], rank=1)[0]

        found: dict[str, LoRAs | None] = {"none": None}
        found |= {f"alpha {a:g}": each(lambda lora, a=a: fuse.spectral([lora], [1.0], a)[0]) for a in _ALPHAS}
        found["dominant alone"] = each(dominant)
        found["without dominant"] = each(lambda lora: fuse.concat([lora, dominant(lora)], [1.0, -1.0]))
        return {name: self._paint(name, loras).figures() for name, loras in found.items()}

    def alone(self, index: int) -> LoRA:
        """The LoRA of one style, from its first reference."""
        return single(self._one, index)

    def _joint(self, tokens: Tensor, bias: Tensor | None = None) -> LoRAs:
        layers = self._predictor(tokens, bias).layers()
        return {target.weight: pair for target, pair in layers.items()}

    def _fused(self, change: Callable[[LoRA, LoRA], LoRA]) -> LoRAs:
        count = self.bench.styles
        return stacked([change(self.alone(i), self.alone((i + 1) % count)) for i in range(count)])

    def _paint(self, name: str, loras: LoRAs | None) -> Case:
        case = self.bench.paint(name, self.sampling, loras, loras)
        self.painted.append(case)
        return case

    def _between(self, name: str, loras: LoRAs, factors: bool = False) -> dict[str, Any]:
        made = self._paint(name, loras).verdict
        to_a, to_b = self._distances(made, 0, style_distance), self._distances(made, -1, style_distance)
        found: dict[str, Any] = {
            "to_a": round(float(to_a.mean()), 4),
            "to_b": round(float(to_b.mean()), 4),
            "share_of_b": round(float((to_a / (to_a + to_b)).mean()), 4),
            "prompt_accuracy": self.painted[-1].figures()["prompt_accuracy"],
        }
        if factors:
            found["b_wins"] = {}
            for factor in style_parts(made):

                def apart(one: Verdict, other: Verdict, factor: str = factor) -> Tensor:
                    return (style_parts(one)[factor] - style_parts(other)[factor]).norm(dim=-1)

                wins = self._distances(made, 0, apart) > self._distances(made, -1, apart)
                found["b_wins"][factor] = round(float(wins.float().mean()), 3)
        return found

    def _distances(self, made: Verdict, roll: int, distance: Callable[[Verdict, Verdict], Tensor]) -> Tensor:
        """To the references of A (roll 0) or of B (roll -1), (pictures,)."""
        prompts = len(made.subject) // self.bench.styles
        total = torch.zeros(len(made.subject))
        for seen in self.bench.seen:
            fields = (getattr(seen, f).roll(roll, 0) for f in Verdict.__dataclass_fields__)
            total += distance(Verdict(*(field.repeat_interleave(prompts, 0) for field in fields)), made)
        return total / len(self.bench.seen)


def interpolated(a: LoRA, b: LoRA, t: float) -> LoRA:
    return interpolate([a, b], Slerp.between([a, b], [1.0, 1.0]), t)[0]


def single(loras: LoRAs, index: int) -> LoRA:
    """One of stacked LoRAs as a value."""
    return LoRA({Target(w): LowRank(down[index], up[index]) for w, (down, up) in loras.items()}, "i2l-tiny")


def stacked(loras: Sequence[LoRA]) -> dict[str, tuple[Tensor, Tensor]]:
    """LoRAs of the same weights, one for each row of a batch; ranks are filled up with zeros."""
    found = {}
    for target in loras[0].layers:
        layers = [lora.layers[target] for lora in loras]
        rank = max(layer.rank for layer in layers)
        missing = [rank - layer.rank for layer in layers]
        downs = [
            torch.nn.functional.pad(one.down, (0, 0, 0, k)) for one, k in zip(layers, missing, strict=True)
        ]
        ups = [torch.nn.functional.pad(one.up, (0, k)) for one, k in zip(layers, missing, strict=True)]
        found[target.weight] = torch.stack(downs).float(), torch.stack(ups).float()
    return found


def _with_trend(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shares = [one["share_of_b"] for one in found.values()]
    return {**found, "monotone": shares == sorted(shares)}


def regions(mix: Mix, count: int, folder: Path) -> dict[str, Any]:
    """A in the left half, B in the right half, in one sampling of the real host.

    `inside`, `outside`: how far the picture is, in its region and in the other one, from the picture that has the
    region's style everywhere, as a share of how far the pictures of A and B are apart there: 0 the same, 1 as far
    as the other style. With rows of their own (Style Region), and with masks on tokens in three ways to treat what
    the whole picture shares (the prompt, modulation): with the mean of the mask, as the pack does, without the
    LoRAs, and with all of them.
    """
    import_host(folder)
    from i2l_core.host.demo.world import load_demo
    from i2l_core.host.live.branches import Branch
    from i2l_core.host.live.engine import attach
    from i2l_core.host.live.loras import LiveLoRA
    from i2l_core.host.lora_model import PredictedLoRA
    from i2l_core.host.regions import add_region

    world = load_demo()
    texts = (content_prompt(mix.bench.targets[0]), "")
    words: list[Any] = [world.clip.encode_from_tokens_scheduled(world.clip.tokenize(text)) for text in texts]
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    found: dict[str, list[Tensor]] = {}
    for index in range(count):
        a, b = (mix.alone(i) for i in (index, (index + 1) % mix.bench.styles))
        # regions of rows act on the positive side alone, so each is compared with what acts there
        whole, positive = (
            [_picture(world, attach(world.model, LiveLoRA(lora, branch=branch)), words) for lora in (a, b)]
            for branch in (None, Branch.POSITIVE)
        )
        one, first = add_region(world.model, words[0], PredictedLoRA(a), left)
        both, rows = add_region(one, first, PredictedLoRA(b), 1 - left)
        apart = _inside_and_outside(_picture(world, both, [rows, words[1]]), *positive)
        found.setdefault("rows of their own", []).append(apart)
        for name, share in {"mean of the mask": None, "no LoRA": 0.0, "every LoRA": 1.0}.items():
            with _text_share(share):
                both = attach(world.model, LiveLoRA(a, mask=left), LiveLoRA(b, mask=1 - left))
                found.setdefault(f"tokens, {name}", []).append(
                    _inside_and_outside(_picture(world, both, words), *whole)
                )
    return {
        name: {"inside": round(inside, 3), "outside": round(outside, 3)}
        for name, (inside, outside) in ((name, torch.stack(r).mean(0).tolist()) for name, r in found.items())
    }


def _picture(world: Any, model: Any, words: Sequence[Any]) -> Tensor:
    """(H, W, 3)"""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*words)
    guider.set_cfg(3.0)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", _REGION_STEPS)
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    euler = comfy.samplers.sampler_object("euler")
    latent = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=1)
    return world.vae.decode(latent)[0]


def _inside_and_outside(both: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(inside, outside), each the mean of both regions."""
    width = both.shape[1]
    near, far = int(width * (0.5 - _MARGIN)), int(width * (0.5 + _MARGIN))
    sides = [(slice(0, near), a, b), (slice(far, width), b, a)]
    values = [
        torch.stack([(both - one)[:, part].norm(), (both - other)[:, part].norm()]) / (a - b)[:, part].norm()
        for part, one, other in sides
    ]
    return torch.stack(values).mean(0)


@contextmanager
def _text_share(value: float | None) -> Iterator[None]:
    """Within it, what the whole picture shares has this share of every masked LoRA instead of the mask's mean."""
    from i2l_core.host.live.image_tokens import ImageTokens

    plain = ImageTokens.shared
    if value is not None:
        ImageTokens.shared = lambda self, mask: torch.full_like(plain(self, mask), value)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ImageTokens.shared = plain  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
