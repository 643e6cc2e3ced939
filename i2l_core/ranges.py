"""What an IMAGE or a MASK may hold: 0..1, and beyond it what resizing and sharpening overshoot.

Pictures of 0..255 or -1..1 are not that; clamped, they would be white or lose their dark half without a word.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import I2LError

LOWEST, HIGHEST = -0.5, 2.0


def check_range(name: str, values: Tensor) -> tuple[float, float]:
    """The lowest and highest value of a picture or mask, which is not empty.

    Raises I2LError unless all are finite and in 0..1, with some tolerance.
    """
    low, high = (float(value) for value in torch.aminmax(values))  # NaN is both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise I2LError(
            f"{name} holds NaN or infinite values; the node that made it failed (a VAE in 16 bit does so: start "
            "ComfyUI with --fp32-vae)"
        )
    if low < LOWEST or high > HIGHEST:
        raise _out_of_range(name, low, high)
    return low, high


def mask_values(name: str, mask: Tensor) -> Tensor:
    """The values of a MASK of any type and shape, which is not empty, as float32.

    Bools and whole numbers count as 0 and 1. Raises I2LError for other whole numbers, whose white nobody knows (1 or
    255), and for values that are complex, not finite or not in 0..1, with some tolerance.
    """
    if mask.is_complex() or mask.is_quantized:
        raise I2LError(f"{name} holds {mask.dtype}, expected numbers from 0 to 1; connect a mask")
    whole = not mask.is_floating_point()
    mask = mask.detach().float()
    low, high = check_range(name, mask)
    if whole and not 0 <= low <= high <= 1:  # no overshoot, but another scale
        raise _out_of_range(name, low, high)
    return mask


def _out_of_range(name: str, low: float, high: float) -> I2LError:
    return I2LError(
        f"{name} has values from {low:.4g} to {high:.4g}, expected 0 to 1; divide it by 255, or scale it to 0 to 1"
    )
