"""Fuse LoRAs from sockets with the method and settings of the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management

from ..errors import I2LError
from ..lora import LoRA
from ..mixing import fuse
from ..mixing.slerp import Slerp, interpolate
from .lora_model import PredictedLoRA, lora_of

CONCAT, SVD, SPECTRAL, INTERPOLATE, MORPH = "concat", "svd", "spectral", "interpolate", "morph"

Progress = Callable[[int, int], None]  # (LoRAs done, LoRAs in all)


def fuse_lora_models(
    values: Sequence[Any],
    weights: Sequence[float],
    method: str,
    *,
    rank: int = 0,
    energy: float = 1.0,
    alpha: float = 0.0,
    t: float = 0.0,
    frames: int = 2,
    progress: Progress | None = None,
) -> tuple[list[PredictedLoRA], str]:
    """(the fused LoRAs, one but for MORPH; what was done in a line). `rank` 0: no limit. Raises I2LError.

    Stops between two LoRAs of a sequence, with the host's own exception, when the user cancels.
    """
    loras = [lora_of(value) for value in values]
    if method == CONCAT:
        made, about = [fuse.concat(loras, weights)], "the exact sum"
    elif method == SVD:
        lora, report = fuse.svd(loras, weights, rank or None, energy)
        made, about = [lora], f"{_percent(report.energy)} of the energy kept, error {_percent(report.error)}"
    elif method == SPECTRAL:
        lora, report = fuse.spectral(loras, weights, alpha)
        made, about = [lora], f"{_percent(report.energy)} of the energy of the styles kept"
    elif method in (INTERPOLATE, MORPH):
        steps = [t] if method == INTERPOLATE else [i / max(1, frames - 1) for i in range(frames)]
        made, about = _between(loras, weights, steps, rank or None, progress)
    else:
        known = ", ".join((CONCAT, SVD, SPECTRAL, INTERPOLATE, MORPH))
        raise I2LError(f"method must be one of {known}; got {method}")
    before = " + ".join(str(lora.rank) for lora in loras)
    return [PredictedLoRA(lora) for lora in made], f"rank {before} -> {_ranks(made)}, {about}{_apart(loras)}"


def _between(
    loras: Sequence[LoRA],
    weights: Sequence[float],
    steps: Sequence[float],
    rank: int | None,
    progress: Progress | None,
) -> tuple[list[LoRA], str]:
    slerp = Slerp.between(loras, weights)
    made, error = [], 0.0
    for done, t in enumerate(steps, 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        lora, report = interpolate(loras, slerp, t, rank)
        made.append(lora)
        error = max(error, report.error)
        if progress is not None:
            progress(done, len(steps))
    first, second = slerp.weights(steps[0])
    about = (
        f"{first:.2f} of the first and {second:.2f} of the second"
        if len(steps) == 1
        else f"{len(steps)} LoRAs from the first to the second"
    )
    return made, about + (f", error {_percent(error)}" if rank else "")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _ranks(made: Sequence[LoRA]) -> str:
    """The ranks of all layers: one number, or the smallest and the largest."""
    ranks = {layer.rank for lora in made for layer in lora.layers.values()}
    return str(max(ranks)) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"


def _apart(loras: Sequence[LoRA]) -> str:
    """A word about weights that not all LoRAs change, which hints at LoRAs of different kinds."""
    weights = [{target.weight for target in lora.layers} for lora in loras]
    common, all_of_them = set.intersection(*weights), set.union(*weights)
    if common == all_of_them:
        return ""
    return f"; {len(common)} of {len(all_of_them)} weights are in all of them"
