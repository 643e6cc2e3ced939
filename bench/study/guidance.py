"""Asymmetric guidance: cfg 1 to 8, what is on the negative side, and which factors of style it helps or harms."""

from __future__ import annotations

from typing import Any

import torch

from i2l_core.demo.sampler import Sampling
from i2l_core.references import GRAY

from .._world import Bench, LoRAs, predict, repeated, rolled

_CFG = (1.0, 2.0, 4.0, 6.0, 8.0)


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Per cfg and negative side; changes are against the style on both sides, paired over styles."""
    style = predict(bench.references)
    gray = repeated(predict(torch.full_like(bench.references[:1], GRAY)), bench.styles)
    negatives: dict[str, LoRAs | None] = {
        "style": style,
        "none": None,
        "gray": gray,
        "wrong style": rolled(style),
    }
    found: dict[str, Any] = {}
    for cfg in _CFG:
        cases = {
            name: bench.paint(f"cfg {cfg:g}, negative {name}", Sampling(steps, cfg), style, negative)
            for name, negative in negatives.items()
            if cfg != 1 or name == "style"  # at cfg 1 there is no negative side
        }
        same = cases["style"]
        factors = {name: bench.factors(case) for name, case in cases.items()}
        found[f"{cfg:g}"] = {
            name: {
                **case.figures(),
                "style_distance_change": bench.paired(case.style_distance, same.style_distance),
                "prompt_accuracy_change": bench.paired(
                    case.right.float().mean(1), same.right.float().mean(1)
                ),
                "change_by_factor": {
                    factor: bench.paired(distance, factors["style"][factor])
                    for factor, distance in factors[name].items()
                },
            }
            for name, case in cases.items()
        }
    return {"cfg": found}
