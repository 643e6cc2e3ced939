"""Weights and masks of references as a bias on the attention logits of their tokens.

A token of weight w gets the bias log(w): in the softmax it then counts as w equal tokens, and -inf leaves it out.
This is exact, because tokens carry no position or picture index (predictors/query/network.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...references import Reference


def attention_bias(references: Sequence[Reference], grids: Sequence[tuple[int, int]]) -> Tensor | None:
    """(1, T) float32 for the tokens of all references, concatenated; None when every token counts once.

    `grids`: (rows, columns) of each reference's patch tokens. A token counts as the picture's weight times the
    mean of the mask over its patch.
    """
    weights = [_token_weights(reference, grid) for reference, grid in zip(references, grids, strict=True)]
    count = torch.cat(weights)
    return None if bool((count == 1).all()) else count.log()[None]


def _token_weights(reference: Reference, grid: tuple[int, int]) -> Tensor:
    mask = reference.full_mask
    if mask is None:
        return torch.full((grid[0] * grid[1],), float(reference.weight))
    return F.adaptive_avg_pool2d(mask[None], grid).flatten() * reference.weight
