"""The image-to-LoRA predictor with learnable row and column queries (arXiv 2606.13809, section 3.1).

    H = T([Q; Z])                          eq. 3   Q: 2kL learnable queries, Z: tokens of all pictures
    A_l[m, :] = D_l^A C_l^A h^A_{l,m}      eq. 4   the same for column m of B_l
    W_l' = W_l + alpha_l B_l A_l           eq. 2   alpha_l is folded into B_l here

Tokens carry no information about which picture they came from. Therefore the order of the pictures does not matter, and
the attention bias log(w) on the tokens of a picture weights it: log 2 equals giving it twice, -inf leaves it out.

Heads of equal shape are stored stacked and run as one batched product per group (matrix kind, width).
Queries are stored in that order too, so decoding a group is a slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...lora import LoRA, LowRank, Target
from .config import QueryConfig


@dataclass(frozen=True, eq=False)
class BatchedLoRAs:
    """LoRAs for a batch of B styles, as the heads output them: one tensor per group of heads.

    `rows[i]`: (B, G, k, d) for `groups[i]`, the rows of A or the columns of B of its G layers.
    Differentiable; the views of `layers()` share memory with it.
    """

    config: QueryConfig
    groups: tuple[HeadGroup, ...]
    rows: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return self.rows[0].shape[0]

    def layers(self) -> dict[Target, tuple[Tensor, Tensor]]:
        """Target -> (down (B, k, d_in), up (B, d_out, k)), alpha folded into up, in the configured order."""
        matrices: dict[tuple[str, int], Tensor] = {}
        for group, rows in zip(self.groups, self.rows, strict=True):
            for member, layer in enumerate(group.members):
                matrices[group.kind, layer] = rows[:, member]
        # columns of B: (B, k, d_out) -> (B, d_out, k)
        return {
            layer.target: (matrices["A", i], matrices["B", i].transpose(1, 2))
            for i, layer in enumerate(self.config.layers)
        }

    def lora(
        self, row: int = 0, base_model: str = "", predictor: str = "", references: tuple[str, ...] = ()
    ) -> LoRA:
        """The LoRA of one style of the batch: detached contiguous copies, same dtype and device."""
        layers = {
            target: LowRank(
                down[row].detach().clone(memory_format=torch.contiguous_format),
                up[row].detach().clone(memory_format=torch.contiguous_format),
            )
            for target, (down, up) in self.layers().items()
        }
        return LoRA(layers, base_model=base_model, predictor=predictor, references=references)


class QueryNetwork(nn.Module):
    """Predicts LoRAs from image tokens, for a batch of styles.

    `operations` gives Linear, LayerNorm and RMSNorm: torch.nn, or a namespace of the host's that casts and
    offloads. Weights are initialised only with torch.nn and off the meta device; otherwise load a state dict.
    A new predictor predicts zero changes: the columns of B are zero, the rows of A have about unit length.
    """

    def __init__(
        self,
        config: QueryConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: ModuleType | Any = nn,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.queries = nn.Parameter(torch.empty(config.n_queries, config.hidden, **factory))
        self.token_norm = operations.LayerNorm(config.token_dim, **factory)
        # the bias is the type embedding that tells image tokens from queries
        self.token_in = operations.Linear(config.token_dim, config.hidden, **factory)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, operations, factory) for _ in range(config.blocks)
        )
        self.out_norm = operations.LayerNorm(config.hidden, **factory)
        self.groups = _groups(config)
        self.heads = nn.ModuleDict({g.name: Head(g, config, factory) for g in self.groups})
        if operations is nn and not self.queries.is_meta:
            self.reset_parameters()

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> BatchedLoRAs:
        """Predict one LoRA per row of the batch.

        `tokens`: (B, T, D), the patch tokens of all references of a style, concatenated in any order.
        `bias`: (B, T), added to the attention logits of a token's column: log of its weight; -inf: left out.
        Computes in the dtype of `tokens`.
        """
        config, n = self.config, self.config.n_queries
        image = self.token_in(self.token_norm(tokens))  # (B, T, hidden)
        queries = _cast(self.queries, image).expand(len(image), -1, -1)  # (B, 2kL, hidden)
        x = torch.cat([queries, image], dim=1)
        mask = None if bias is None else F.pad(bias.to(x), (n, 0))[:, None, None, :]  # (B, 1, 1, 2kL + T)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, keep=n if i + 1 == config.blocks else None)  # only queries leave the last
        states = self.out_norm(x)

        rows, start = [], 0
        for group in self.groups:
            count = len(group.members) * config.rank
            h = states[:, start : start + count].unflatten(1, (len(group.members), config.rank))
            rows.append(self.heads[group.name](h))
            start += count
        return BatchedLoRAs(config, self.groups, tuple(rows))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random weights from torch's global generator; B's last factor zero: the LoRA is the identity."""
        nn.init.normal_(self.queries, std=0.1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            for linear in (block.attention_out, block.mlp_out):  # the residual stream keeps its size
                linear.weight.mul_((2 * self.config.blocks) ** -0.5)
        for group in self.groups:
            head = self.heads[group.name]
            assert isinstance(head, Head)
            nn.init.normal_(head.compress, std=self.config.hidden**-0.5)
            nn.init.normal_(head.expand, std=0.0 if group.kind == "B" else self.config.code**-0.5)
            if head.alpha is not None:
                nn.init.constant_(head.alpha, self.config.alpha)


class TransformerBlock(nn.Module):
    """A single-stream pre-norm transformer block: queries and image tokens share every weight."""

    def __init__(self, config: QueryConfig, operations: ModuleType | Any, factory: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads = config.heads
        head_dim = config.hidden // config.heads
        self.attention_norm = operations.LayerNorm(config.hidden, **factory)
        self.query = operations.Linear(config.hidden, config.hidden, bias=False, **factory)
        self.key_value = operations.Linear(config.hidden, 2 * config.hidden, bias=False, **factory)
        self.query_norm = operations.RMSNorm(head_dim, eps=1e-6, **factory)
        self.key_norm = operations.RMSNorm(head_dim, eps=1e-6, **factory)
        self.attention_out = operations.Linear(config.hidden, config.hidden, **factory)
        self.mlp_norm = operations.LayerNorm(config.hidden, **factory)
        self.mlp_in = operations.Linear(config.hidden, config.mlp, **factory)
        self.mlp_out = operations.Linear(config.mlp, config.hidden, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: int | None = None) -> Tensor:
        """(B, S, hidden) -> (B, keep or S, hidden); with `keep` only the first states, still from all."""
        h = self.attention_norm(x)
        x = x[:, :keep]
        q = self._split(self.query(h[:, :keep]))
        k, v = (self._split(part) for part in self.key_value(h).chunk(2, dim=-1))
        q, k = self.query_norm(q.to(h)).to(v), self.key_norm(k.to(h)).to(v)  # casts only under autocast
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_out(h.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # -> (B, heads, S, head_dim)


class Head(nn.Module):
    """The compressed linear heads of one group, hidden -> c -> d, as two batched products (eq. 4).

    A is predicted at unit scale and brought to rows of about unit length; B is scaled by a learned alpha.
    """

    def __init__(self, group: HeadGroup, config: QueryConfig, factory: dict[str, Any]) -> None:
        super().__init__()
        size = len(group.members)
        # C, transposed
        self.compress = nn.Parameter(torch.empty(size, config.hidden, config.code, **factory))
        self.expand = nn.Parameter(torch.empty(size, config.code, group.width, **factory))  # D, transposed
        self.alpha = nn.Parameter(torch.empty(size, **factory)) if group.kind == "B" else None
        self.unit = 1 / math.sqrt(group.width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, G, k, hidden) -> (B, G, k, d)"""
        batch, rank = h.shape[0], h.shape[2]
        h = h.transpose(0, 1).flatten(1, 2)  # (G, B k, hidden)
        code = torch.bmm(h, _cast(self.compress, h))  # (G, B k, c)
        code = code * (self.unit if self.alpha is None else _cast(self.alpha, code)[:, None, None])
        rows = torch.bmm(code, _cast(self.expand, h))  # (G, B k, d)
        return rows.unflatten(1, (batch, rank)).transpose(0, 1)


@dataclass(frozen=True)
class HeadGroup:
    """The heads that run as one batched product: `members` are indices into the configuration's layers."""

    kind: Literal["A", "B"]
    width: int  # d: d_in for A, d_out for B
    members: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.width}"


def _groups(config: QueryConfig) -> tuple[HeadGroup, ...]:
    members: dict[tuple[Literal["A", "B"], int], list[int]] = {}
    for i, layer in enumerate(config.layers):
        members.setdefault(("A", layer.d_in), []).append(i)
        members.setdefault(("B", layer.d_out), []).append(i)
    return tuple(HeadGroup(kind, width, tuple(layers)) for (kind, width), layers in sorted(members.items()))


def _cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A raw parameter where and as the host wants to compute; itself when it is there already."""
    return parameter.to(device=like.device, dtype=like.dtype)
