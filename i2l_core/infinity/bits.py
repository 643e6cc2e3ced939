"""Binary spherical quantisation: pictures as signs, scale by scale.

A place of a latent is a code of d signs, +-1 / sqrt(d). A picture is the sum of its scales, each brought to the size of
the last, and scale s + 1 is what the first s left over:

    F_s = F_{s-1} + up(sign(area(z - F_{s-1})) / sqrt(d))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import I2LError
from .scales import Scales


@dataclass(frozen=True)
class Features:
    """A picture's F_1 .. F_S, each (B, d, H, W) float32 at the size of the last scale, and its bits per scale, each
    (B, n, token bits) bool."""

    sums: tuple[Tensor, ...]
    bits: tuple[Tensor, ...]


def codes(bits: Tensor, tokens: tuple[int, int], patchify: bool) -> Tensor:
    """Bits (B, n, token bits) of a map of so many tokens -> codes (B, d, h, w), float32; d is a quarter of the token's
    bits, and h, w twice as many, with `patchify`."""
    signs = bits.float().transpose(1, 2).unflatten(-1, tokens) * 2 - 1
    if patchify:
        signs = F.pixel_shuffle(signs, 2)
    return signs / signs.shape[1] ** 0.5


def as_tokens(latent: Tensor, patchify: bool) -> Tensor:
    """(B, d, h, w) -> (B, n, token bits) of the same type."""
    if patchify:
        latent = F.pixel_unshuffle(latent, 2)
    return latent.flatten(2).transpose(1, 2)


def resized(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, as sums are brought up to the last scale and down to the next one."""
    if tuple(latent.shape[-2:]) == size:
        return latent
    return F.interpolate(latent, size=size, mode="bilinear", align_corners=False)


def features(latent: Tensor, scales: Scales, patchify: bool) -> Features:
    """What a latent (B, d, H, W) of the picture coder is after each scale. Raises I2LError for another size, or for
    values that are not finite."""
    cells = scales.cells(patchify)
    if tuple(latent.shape[-2:]) != cells[-1]:
        raise I2LError(
            f"expected a latent of {cells[-1][0]} x {cells[-1][1]} places, "
            f"got {latent.shape[-2]} x {latent.shape[-1]}; encode the picture at the size that is drawn"
        )
    left = latent.float()
    if not torch.isfinite(left).all():
        raise I2LError("expected a latent of finite numbers, got NaN or infinity; load the VAE again")
    total, sums, bits = torch.zeros_like(left), [], []
    for tokens, size in zip(scales.maps, cells, strict=True):
        coarse = left if size == cells[-1] else F.interpolate(left, size=size, mode="area")
        chosen = as_tokens((coarse > 0).float(), patchify) > 0
        code = resized(codes(chosen, tokens, patchify), cells[-1])
        left, total = left - code, total + code
        sums.append(total)
        bits.append(chosen)
    return Features(tuple(sums), tuple(bits))


def check_bits(bits: Sequence[Tensor], scales: Scales, token_bits: int) -> None:
    """Raise I2LError unless they are those of the first scales, each (B, n, token bits) with one B."""
    if len(bits) > len(scales.maps):
        raise I2LError(
            f"expected bits of at most {len(scales.maps)} scales, got {len(bits)}; keep fewer scales"
        )
    for number, (found, count) in enumerate(zip(bits, scales.counts, strict=False), 1):
        if found.ndim != 3 or found.shape[1:] != (count, token_bits) or len(found) != len(bits[0]):
            raise I2LError(
                f"expected {count} tokens of {token_bits} bits at scale {number}, got {tuple(found.shape)}; "
                "take the bits of a picture encoded at this size by this model's VAE"
            )
