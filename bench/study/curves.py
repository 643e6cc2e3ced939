"""What happens along the knobs: strength, rank by truncation, spectral decay, and the way from one style to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from i2l_core.demo.judge import style_distance
from i2l_core.demo.sampler import Sampling
from i2l_core.lora import LoRA
from i2l_core.mixing import fuse

from .._world import Bench, LoRAs, predict
from ..fusion import interpolated, single, stacked

_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_RANKS = (1, 2, 3, 4)
_ALPHAS = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)
_WAY = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def run(bench: Bench, steps: int) -> dict[str, Any]:
    styles, sampling, loras = bench.styles, Sampling(steps), predict(bench.references)

    def figures(name: str, lora: LoRAs) -> dict[str, float]:
        return bench.paint(name, sampling, lora, lora).figures()

    def each(change: Callable[[LoRA], LoRA]) -> LoRAs:
        return _on(bench.device, stacked([change(single(cpu, i)) for i in range(styles)]))

    cpu = _on(torch.device("cpu"), loras)
    found: dict[str, Any] = {
        "strength": {
            f"{s:g}": figures(f"strength {s:g}", {k: (d, s * u) for k, (d, u) in loras.items()})
            for s in _STRENGTHS
        },
        "rank": {
            str(r): figures(f"rank {r}", each(lambda lora, r=r: fuse.svd([lora], [1.0], rank=r)[0]))
            for r in _RANKS
        },
        "spectral": {
            f"{a:g}": figures(f"alpha {a:g}", each(lambda lora, a=a: fuse.spectral([lora], [1.0], a)[0]))
            for a in _ALPHAS
        },
        "way": {},
    }
    for t in _WAY:
        mixed = [interpolated(single(cpu, i), single(cpu, (i + 1) % styles), t) for i in range(styles)]
        lora = _on(bench.device, stacked(mixed))
        case = bench.paint(f"t {t:g}", sampling, lora, lora)
        to_b = torch.stack([_to_next(case, reference) for reference in bench.seen]).mean(0)
        share = case.style_distance / (case.style_distance + to_b)
        found["way"][f"{t:g}"] = {
            "to_a": round(float(case.style_distance.mean()), 4),
            "to_b": round(float(to_b.mean()), 4),
            "share_of_b": round(float(share.mean()), 4),
            "prompt_accuracy": case.figures()["prompt_accuracy"],
        }
    return found


def _to_next(case: Any, reference: Any) -> Tensor:
    fields = (getattr(reference, f).roll(-1, 0) for f in type(reference).__dataclass_fields__)
    return style_distance(case.verdict, type(reference)(*fields)).cpu()


def _on(device: torch.device, loras: LoRAs) -> LoRAs:
    return {k: (down.to(device), up.to(device)) for k, (down, up) in loras.items()}
