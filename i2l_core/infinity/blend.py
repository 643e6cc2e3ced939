"""Principal Feature Blending (arXiv 2507.04482, 4.2): the feature after an early scale takes that of a style.

    F_s <- F_s + strength (Phi(F_style) - Phi(F_s))

Phi keeps principal components by weight (principal_features.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_int, check_number
from ..errors import I2LError
from ..principal_features import decaying, largest, principal

BLEND, REPLACE, TOP = "blend", "replace", "top k"
MODES = (BLEND, REPLACE, TOP)


@dataclass(frozen=True)
class BlendSettings:
    """`step`: the scale (from 1) after which the feature is blended. `alpha`: how fast the weights of the components
    fall, for "blend". `k`: how many components, for "top k". Raises I2LError for a number out of range."""

    mode: str = BLEND
    alpha: float = 1.0
    k: int = 1
    strength: float = 1.0
    step: int = 3

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise I2LError(f"expected a mode of {', '.join(MODES)}, got {self.mode}; choose one of them")
        if not 0 <= self.alpha <= 100:
            raise I2LError(f"expected an alpha from 0 to 100, got {self.alpha}; the paper uses 0.2 to 5")
        check_int("k", self.k, 1024)
        if not abs(self.strength) <= 10:
            raise I2LError(f"expected a strength from -10 to 10, got {self.strength}; 1 is the reference")
        check_int("the style's scale", self.step, 64)


def style_part(features: Sequence[Tensor], weights: Sequence[float], settings: BlendSettings) -> Tensor:
    """The weighted mean of Phi(F_style) over references, each (1 or B, d, H, W), all of one size.

    Phi is not linear, but the blend is linear in it, so a reference given twice equals one of weight 2.
    Raises I2LError for references that do not fit each other, or weights that are not above 0.
    """
    if not features or len(features) != len(weights):
        raise I2LError(
            f"expected a weight for each reference, got {len(features)} references and {len(weights)} weights"
        )
    for feature, weight in zip(features, weights, strict=True):
        check_number("the weight of a reference", weight, 0, 1e6)
        if feature.shape[1:] != features[0].shape[1:]:
            raise I2LError(
                f"expected references of one size, got {tuple(features[0].shape[1:])} and {tuple(feature.shape[1:])}; "
                "encode them at the size that is drawn"
            )
    total = sum(weights)
    parts = (_kept(f, settings) * (w / total) for f, w in zip(features, weights, strict=True))
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0)


def blended(total: Tensor, part: Tensor, settings: BlendSettings) -> Tensor:
    """The feature (B, d, H, W) with the part of a style (1 or B, d, H, W)."""
    return total + settings.strength * (part.to(total) - _kept(total, settings))


def _kept(feature: Tensor, settings: BlendSettings) -> Tensor:
    """Phi of each row, all of the feature for "replace". On the CPU: not every device has float64, and it is small."""
    if settings.mode == REPLACE:
        return feature
    maps = feature.detach().to("cpu", torch.float64).flatten(2)
    count = min(maps.shape[1:])
    weights = largest(settings.k, count) if settings.mode == TOP else decaying(settings.alpha, count)
    return principal(maps, weights).view(feature.shape).to(feature)
