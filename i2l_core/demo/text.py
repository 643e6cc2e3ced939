"""The text encoder of the demo world: word and position embeddings, fixed length, trained with the backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .prompts import TOKENS, VOCABULARY

WIDTH = 128


class TextEncoder(nn.Module):
    """Token ids (B, TOKENS) int64 -> conditioning (B, TOKENS, WIDTH). The backbone mixes the words."""

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None, ops=nn) -> None:
        super().__init__()
        self.words = ops.Embedding(len(VOCABULARY), WIDTH, device=device, dtype=dtype)
        self.places = ops.Embedding(TOKENS, WIDTH, device=device, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(TOKENS, device=ids.device))
