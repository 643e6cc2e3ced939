"""What 500 steps of training a LoRA cost against predicting one, as the picture that is trained on grows."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from i2l_core.demo.autoencoder import PATCH
from i2l_core.demo.backbone import LayerPair

from .._world import Bench, predict
from .trained import clock, flow, fresh, seconds_of_predicting

_SIDES = (16, 32, 48)  # of the latents
_STEPS = 500
_ROUNDS = 5


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Seconds per style, medians of interleaved rounds; one reference, one target a step, all styles in a batch."""
    del steps  # nothing is sampled
    own = fresh(predict(bench.references))
    predicting: list[float] = []
    learning: dict[int, list[float]] = {side: [] for side in _SIDES}
    for _ in range(_ROUNDS + 1):  # the first one warms up
        predicting.append(seconds_of_predicting(bench, bench.references))
        for side in _SIDES:
            learning[side].append(_step(bench, own, side))
    one = statistics.median(predicting[1:]) / bench.styles
    each = {side: statistics.median(seconds[1:]) / bench.styles for side, seconds in learning.items()}
    return {
        "predicting": round(one, 5),
        "pixels": {
            str(PATCH * side): {
                "step": round(step, 5),
                "predictions_in_500_steps": round(_STEPS * step / one),
            }
            for side, step in each.items()
        },
    }


def _step(bench: Bench, lora: dict[str, LayerPair], side: int) -> float:
    generator = torch.Generator().manual_seed(side)
    clean = torch.randn(bench.styles, 16, side, side, generator=generator).to(bench.device)
    started = clock(bench)
    with torch.enable_grad():
        flow(bench, clean, bench.words, lora, generator).backward()
    return clock(bench) - started
