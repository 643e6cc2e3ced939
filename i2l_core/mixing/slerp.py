"""Spherical interpolation (slerp, Shoemake 1985) between the changes of two LoRAs.

    dW(t) = n(t) * (sin((1-t) x) / sin x * dW_a / |dW_a| + sin(t x) / sin x * dW_b / |dW_b|)
    n(t) = (1-t) |dW_a| + t |dW_b|        x = the angle between dW_a and dW_b over all layers, 90 degrees at most

Linear interpolation, `fuse.concat` with (1-t, t), is weaker in the middle: by 29 % for orthogonal LoRAs. With slerp the
norm changes linearly from one end to the other. One angle for the whole LoRA keeps the balance of its layers. Angles
are capped at 90 degrees, because a larger one would amplify what remains when opposed LoRAs cancel. t = 0 and t = 1
give the two LoRAs exactly; two strengths of one LoRA give the strengths between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import I2LError
from ..lora import LoRA
from . import spectrum
from .fuse import FusionReport, KeptEnergy, checked_pairs, concat, truncated


@dataclass(frozen=True)
class Slerp:
    """The slerp between two weighted LoRAs: their Frobenius norms, and the angle in radians."""

    lora_weights: tuple[float, float]
    sizes: tuple[float, float]
    angle: float

    @classmethod
    @torch.no_grad()
    def between(cls, loras: Sequence[LoRA], weights: Sequence[float]) -> Slerp:
        """Build the slerp from the first of two LoRAs to the second.

        Raises I2LError as `fuse.concat` does, and when there are not two LoRAs or a weight is 0.
        """
        if len(loras) != 2:
            raise I2LError(f"interpolation needs two LoRAs, got {len(loras)}")
        if len(checked_pairs(loras, weights)) < 2:
            raise I2LError(
                "to interpolate between two LoRAs, neither weight may be 0; use concat to fade one LoRA out"
            )
        (a, b), (w_a, w_b) = loras, weights
        size_a, size_b = (abs(w) * math.sqrt(float(spectrum.energy(x))) for x, w in ((a, w_a), (b, w_b)))
        cosine = math.copysign(1, w_a * w_b) * float(spectrum.cosine(a, b))
        return cls((w_a, w_b), (size_a, size_b), math.acos(max(0.0, cosine)))

    def weights(self, t: float) -> tuple[float, float]:
        """The weights of `fuse.concat` that give the LoRA at `t`. Raises I2LError for a `t` outside 0..1."""
        if not 0 <= t <= 1:
            raise I2LError(f"t must be a number from 0 (the first LoRA) to 1 (the second), got {t}")
        (w_a, w_b), (size_a, size_b) = self.lora_weights, self.sizes
        if not size_a or not size_b:
            return (1 - t) * w_a, t * w_b
        size = (1 - t) * size_a + t * size_b
        return w_a * (size / size_a) * self._arc(1 - t), w_b * (size / size_b) * self._arc(t)

    def _arc(self, t: float) -> float:
        """sin(t x) / sin(x), and its limit at 0."""
        return math.sin(t * self.angle) / math.sin(self.angle) if self.angle > 1e-6 else t


def interpolate(
    loras: Sequence[LoRA], slerp: Slerp, t: float, rank: int | None = None
) -> tuple[LoRA, FusionReport]:
    """The interpolated LoRA at `t`, 0..1, of the two LoRAs that `slerp` was built from.

    The rank is the sum of both, or `rank` as in `fuse.svd`. Differentiable when no `rank` is given, sizes and angle
    taken as constants. Raises I2LError as `fuse.svd` does, and for a `t` outside 0..1.
    """
    lora = concat(loras, slerp.weights(t))
    return truncated(lora, rank, None) if rank is not None else (lora, KeptEnergy().report(lora))
