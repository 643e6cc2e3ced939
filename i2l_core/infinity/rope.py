"""Rotary positions in two dimensions, on the grid of the largest map.

A place (y, x) of a map (h, w) stands at round(y H / h), round(x W / w) of the reference map (H, W). The first half of a
head turns with y, the second with x, in neighbouring pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scales import Scales

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (n, head width / 2), float32


def rotation(scales: Scales, index: int, head_width: int, device: torch.device | None = None) -> Rotation:
    """The turns of the tokens of one scale, row by row."""
    height, width = scales.maps[index]
    half = head_width // 2
    rates = 1 / 10000 ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    y = (torch.arange(height, device=device) * (scales.reference[0] / height)).round()
    x = (torch.arange(width, device=device) * (scales.reference[1] / width)).round()
    angles = torch.cat(
        (
            torch.outer(y, rates)[:, None].expand(height, width, -1),
            torch.outer(x, rates)[None].expand(height, width, -1),
        ),
        -1,
    ).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """(..., n, head width) -> the same, each pair of channels turned, in the wider type of x and float32."""
    cos, sin = turn
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((cos * a - sin * b, sin * a + cos * b), -1).flatten(-2)
