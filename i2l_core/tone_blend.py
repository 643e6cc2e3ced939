"""Take the tone of pictures, their colours and light, for a picture that is being denoised.

    x0' = x0 + strength up(Phi(D z) - Phi(D x0))        D: mean over each of g x g cells; up: bilinear

z is the latent of a reference picture. Only what a map of g x g cells can hold moves: with g = 1 the mean colour. D up
is not the identity, so D x0' comes near to what is asked for, not exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_int
from .errors import I2LError
from .principal_features import decaying, principal

MAX_GRID = 32


@dataclass(frozen=True)
class ToneSettings:
    """`strength`: 1 as the reference, 0 off. `grid`: cells a side. `alpha`: how fast the weights of the components
    fall. Raises I2LError for a number out of range."""

    strength: float = 1.0
    grid: int = 4
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_int("grid", self.grid, MAX_GRID)
        if not abs(self.strength) <= 10:  # NaN compares false
            raise I2LError(f"strength must be from -10 to 10, got {self.strength}")
        if not 0 <= self.alpha <= 100:
            raise I2LError(f"alpha must be from 0 to 100, got {self.alpha}")


def coarse(latents: Tensor, grid: int) -> Tensor:
    """D: (B, C, H, W) -> (B, C, g, g), g at most H and W."""
    height, width = latents.shape[-2:]
    return F.adaptive_avg_pool2d(latents, (min(grid, height), min(grid, width)))


def tone_of(latents: Sequence[Tensor], weights: Sequence[float], settings: ToneSettings) -> Tensor:
    """The weighted mean of Phi(D z) over reference latents (1, C, H, W) of any sizes: (1, C, g, g).

    Phi is not linear, but the blend is linear in it, so a reference given twice equals one of weight 2.
    Raises I2LError if a latent is smaller than the grid.
    """
    total = sum(weights)
    parts = []
    for latent, weight in zip(latents, weights, strict=True):
        if min(latent.shape[-2:]) < settings.grid:
            raise I2LError(
                f"a grid of {settings.grid} cells needs a larger reference: its latent has "
                f"{latent.shape[-1]}x{latent.shape[-2]}; lower the grid, or use a larger picture"
            )
        parts.append(_principal(coarse(latent, settings.grid), settings.alpha) * (weight / total))
    return torch.stack(parts).sum(0)


def blend_tone(x0: Tensor, tone: Tensor, settings: ToneSettings, factor: float = 1.0) -> Tensor:
    """x0 (B, C, H, W) with the tone (1, C, g, g); `factor` multiplies the strength. Each row on its own."""
    here = coarse(x0.float(), tone.shape[-1])
    if here.shape[-2:] != tone.shape[-2:]:
        raise I2LError(
            f"a grid of {tone.shape[-1]} cells needs a larger picture: its latent has {x0.shape[-1]}x{x0.shape[-2]}; "
            "lower the grid"
        )
    change = tone.to(here) - _principal(here, settings.alpha)
    up = F.interpolate(change, x0.shape[-2:], mode="bilinear", align_corners=False)
    return x0 + (settings.strength * factor * up).to(x0.dtype)


def _principal(cells: Tensor, alpha: float) -> Tensor:
    """On the CPU: not every device has float64, and the matrices are tiny."""
    maps = cells.detach().to("cpu", torch.float64).flatten(2)
    found = principal(maps, decaying(alpha, min(maps.shape[1:])))
    return found.view(cells.shape).to(cells)
