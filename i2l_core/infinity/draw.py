"""Bits drawn from their logits: one seed a picture, on the CPU, so that every device draws alike.

A bit is drawn as torch.multinomial draws one of two: the larger of p_i / e_i, with e_i from an exponential
distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

_OTHER_PATH = 0x9E3779B97F4A7C15  # added to the seed of a path that draws on its own


class Draws:
    """The random numbers of `rows` pictures: picture r of a batch draws as the first of the seed `seed + r`."""

    def __init__(self, seed: int, rows: int, path: int = 0) -> None:
        self._generators = [
            torch.Generator().manual_seed((seed + row + path * _OTHER_PATH) % 2**64) for row in range(rows)
        ]

    def next(self, tokens: int, bits: int, device: torch.device | None = None) -> Tensor:
        """Exponential numbers for the next scale, (rows, tokens, bits, 2) float32."""
        drawn = [
            torch.empty(tokens, bits, 2).exponential_(generator=generator) for generator in self._generators
        ]
        return torch.stack(drawn).to(device)


def drawn_bits(logits: Tensor, exponentials: Tensor, top_p: float) -> Tensor:
    """(..., 2) logits and exponential numbers -> (...) bool. The less likely value of a bit is never drawn where its
    probability is at most 1 - top_p."""
    p0, p1 = logits.softmax(-1).unbind(-1)
    never = torch.minimum(p0, p1) <= 1 - top_p
    e0, e1 = exponentials.unbind(-1)
    return torch.where(never, p1 > p0, p1 / e1 > p0 / e0)
