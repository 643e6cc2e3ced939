"""The transformer of Infinity (arXiv 2412.04431), with the names of the released weights.

Weights differ from the files in two ways: biases of q, k, v that the files hold apart are one bias of their Linear, and
q, k and v are `sa.qk` and `sa.v` (files.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention, TextPool
from .config import InfinityConfig

_EPS = 1e-6


@dataclass(frozen=True)
class Prompt:
    """A text as the transformer reads it: `summary` (B, C), `six` (B, 1, 6, C) from it, both float32, and the keys and
    values of its words for each block."""

    summary: Tensor
    six: Tensor
    words: tuple[tuple[Tensor, Tensor], ...]


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, ops, **kind) -> None:
        super().__init__()
        self.fc1 = ops.Linear(width, hidden, **kind)
        self.fc2 = ops.Linear(hidden, width, **kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: InfinityConfig, ops, **kind) -> None:
        super().__init__()
        self.sa = SelfAttention(config.width, config.heads, ops, **kind)
        self.ca = CrossAttention(config.width, config.heads, ops, **kind)
        self.ca_norm = ops.LayerNorm(config.width, eps=_EPS, **kind)
        self.ffn = FeedForward(config.width, config.hidden, ops, **kind)
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, config.width, **kind))

    def forward(
        self, x: Tensor, six: Tensor, words: tuple[Tensor, Tensor], dtype: torch.dtype, **attention
    ) -> Tensor:
        """x: (rows, n, C) -> the same, float32. The rest of the arguments are those of SelfAttention."""
        gain1, gain2, scale1, scale2, shift1, shift2 = (self.ada_gss.to(six) + six).unbind(2)
        attended = self.sa((normal(x) * (scale1 + 1) + shift1).to(dtype), **attention)
        x = x + (attended * gain1).to(dtype)
        x = x + self.ca(self.ca_norm(x.float()).to(dtype), words).float()
        return x + self.ffn((normal(x) * (scale2 + 1) + shift2).to(dtype)) * gain2


class TextNorm(nn.Module):
    def __init__(self, text_width: int, **kind) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(text_width, **kind))

    def forward(self, text: Tensor) -> Tensor:
        text = text.float()
        return text * torch.rsqrt(text.pow(2).mean(-1, keepdim=True) + _EPS) * self.weight.to(text)


class TextSummary(nn.Module):
    def __init__(self, config: InfinityConfig, ops, **kind) -> None:
        super().__init__()
        self.ca = TextPool(config.text_width, config.width, config.pool_heads, ops, **kind)

    def forward(self, text: Tensor) -> Tensor:
        return self.ca(text).float()


class HeadNorm(nn.Module):
    def __init__(self, width: int, ops, **kind) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), ops.Linear(width, 2 * width, **kind))

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        scale, shift = self.ada_lin(summary).unflatten(-1, (1, 2, -1)).unbind(2)
        return normal(x) * (for_rows(scale, len(x)) + 1) + for_rows(shift, len(x))


class Infinity(nn.Module):
    """`ops`: layers that cast their weights to the type of what comes in, unless all is float32."""

    def __init__(
        self,
        config: InfinityConfig,
        ops=nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        width, text_width = config.width, config.text_width
        self.config = config
        self.word_embed = ops.Linear(config.token_bits, width, **kind)
        self.lvl_embed = ops.Embedding(config.levels, width, **kind)
        self.pos_start = nn.Parameter(torch.empty(1, 1, width, **kind))
        self.cfg_uncond = nn.Parameter(torch.empty(config.text_length, text_width, **kind))
        self.text_norm = TextNorm(text_width, **kind)
        self.text_proj_for_sos = TextSummary(config, ops, **kind)
        self.text_proj_for_ca = nn.Sequential(
            ops.Linear(text_width, width, **kind),
            nn.GELU(approximate="tanh"),
            ops.Linear(width, width, **kind),
        )
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), ops.Linear(width, 6 * width, **kind))
        self.head_nm = HeadNorm(width, ops, **kind)
        self.head = ops.Linear(width, 2 * config.token_bits, **kind)
        self.blocks = nn.ModuleList(Block(config, ops, **kind) for _ in range(config.depth))

    def prompt(self, text: Tensor, dtype: torch.dtype) -> Prompt:
        """From the states of a text (B, L, text width), without padding."""
        text = self.text_norm(text).to(dtype)
        summary = self.text_proj_for_sos(text)
        context = self.text_proj_for_ca(text)
        six = self.shared_ada_lin(summary).unflatten(-1, (1, 6, -1))
        return Prompt(summary, six, tuple(block.ca.words(context) for block in self.each_block()))

    def each_block(self) -> Iterable[Block]:
        return cast("Iterable[Block]", self.blocks)

    def empty_text(self, length: int) -> Tensor:
        """What stands for no prompt: (1, up to `length`, text width), learned."""
        return self.cfg_uncond[None, :length].float()

    def start(self, prompt: Prompt) -> Tensor:
        """The token of the first scale, (B, 1, C)."""
        return self._at_level(prompt.summary[:, None] + self.pos_start.to(prompt.summary), 0)

    def embed(self, tokens: Tensor, index: int, dtype: torch.dtype) -> Tensor:
        """The tokens of a later scale (B, n, token bits), from the sum of those before it."""
        # Laid out in order, or the product is rounded before its bias is added
        return self._at_level(self.word_embed(tokens.to(dtype).contiguous()), index)

    def logits(self, x: Tensor, prompt: Prompt) -> Tensor:
        """(rows, n, C) -> (rows, n, token bits, 2), float32: of bit 0 and of bit 1."""
        return self.head(self.head_nm(x, prompt.summary)).unflatten(-1, (-1, 2))

    def _at_level(self, x: Tensor, index: int) -> Tensor:
        level = self.lvl_embed(torch.tensor(index, device=x.device))
        return (x + level).to(x.dtype)


def normal(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=_EPS)


def for_rows(x: Tensor, rows: int) -> Tensor:
    """(1 or B, ...) for all rows: those of each path are the same B."""
    return x if len(x) in (1, rows) else x.repeat(rows // len(x), *[1] * (x.ndim - 1))
