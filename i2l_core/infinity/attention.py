"""Attention of Infinity: cosine self-attention over the scales so far, attention to the prompt, and its summary.

Modules are made from `ops`, layers of torch.nn or of the host, which cast and offload their weights. Sums are float32,
products are in the type that is computed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import Memory
from .rope import Rotation, rotate

_SHARPEST = math.log(100)


def in_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, C) -> (B, heads, n, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def out_of_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """q and k of length 1, q times a learned factor of its head, both turned by their place."""

    def __init__(self, width: int, heads: int, ops, **kind) -> None:
        super().__init__()
        self.heads = heads
        self.qk = ops.Linear(width, 2 * width, **kind)
        self.v = ops.Linear(width, width, **kind)
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1, **kind))
        self.proj = ops.Linear(width, width, **kind)

    def forward(
        self,
        x: Tensor,
        turn: Rotation,
        memory: Memory,
        layer: int,
        index: int,
        paths: Sequence[int],
        rows: int,
        corrected: bool,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x: (rows or paths x rows, n, C), path after path. `corrected`: all paths take q and k of the first, so they
        attend alike: Structural Attention Correction (arXiv 2507.04482, 4.3). `mask`: (n, all tokens) bool, what may
        be attended to, where several scales are computed at once, as in training."""
        asking = x[:rows] if corrected else x
        q, k = (in_heads(part, self.heads).float() for part in self.qk(asking).chunk(2, -1))
        sharpness = self.scale_mul_1H11.to(q).clamp_max(_SHARPEST).exp()
        q = rotate(F.normalize(q, dim=-1, eps=1e-12) * sharpness, turn).to(x.dtype).split(rows)
        k = rotate(F.normalize(k, dim=-1, eps=1e-12), turn).to(x.dtype).split(rows)
        v = in_heads(self.v(x), self.heads).split(rows)
        seen = memory.extended(layer, index, paths, k, v)[: len(v)]
        found = [
            F.scaled_dot_product_attention(q[min(i, len(q) - 1)], keys, values, mask, scale=1.0)
            for i, (keys, values) in enumerate(seen)
        ]
        return self.proj(out_of_heads(torch.cat(found) if len(found) > 1 else found[0]))


class CrossAttention(nn.Module):
    """Attention to the words of the prompt."""

    def __init__(self, width: int, heads: int, ops, **kind) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = ops.Linear(width, width, **kind)
        self.mat_kv = ops.Linear(width, 2 * width, **kind)
        self.proj = ops.Linear(width, width, **kind)

    def words(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a prompt (B, L, C): once a run."""
        k, v = (in_heads(part, self.heads) for part in self.mat_kv(context).chunk(2, -1))
        return k, v

    def forward(self, x: Tensor, words: tuple[Tensor, Tensor]) -> Tensor:
        q = in_heads(self.mat_q(x), self.heads)
        k, v = (part.expand(len(q), -1, -1, -1) if len(part) == 1 else part for part in words)
        if len(k) < len(q):  # each path has the words of every row
            k, v = (part.repeat(len(q) // len(k), 1, 1, 1) for part in (k, v))
        return self.proj(out_of_heads(F.scaled_dot_product_attention(q, k, v)))


class TextPool(nn.Module):
    """A learned question to all words: (B, L, text width) -> (B, C)."""

    def __init__(self, text_width: int, width: int, heads: int, ops, **kind) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads, **kind))
        self.mat_kv = ops.Linear(text_width, 2 * width, **kind)
        self.proj = ops.Linear(width, width, **kind)

    def forward(self, text: Tensor) -> Tensor:
        k, v = (in_heads(part, self.heads) for part in self.mat_kv(text).chunk(2, -1))
        q = self.mat_q.to(k).expand(len(text), -1, -1)[:, :, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v).flatten(1))
