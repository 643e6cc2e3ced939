"""The image-to-LoRA predictor with learnable row and column queries (arXiv 2606.13809, section 3.1).

    H = T([Q; Z])                          eq. 3   Q: 2kL learnable queries, Z: tokens of all pictures
    A_l[m, :] = D_l^A C_l^A h^A_{l,m}      eq. 4   the same for column m of B_l
    W_l' = W_l + alpha_l B_l A_l           eq. 2   alpha_l is folded into B_l here

Nothing marks which picture a token came from, so the order of the pictures does not matter, and a picture
whose tokens get the attention bias log(w) counts w times: bias log 2 equals giving it twice, bias -inf equals
leaving it out.

Heads of equal shape are stored stacked and run as one batched product per group (matrix kind, width).
Queries are stored in that order too, so decoding a group is a slice.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checks import check_entries, check_int, check_number, shown
from ...errors import I2LError
from ...lora import LoRA, LowRank, Target

# the largest sizes a configuration may ask for: far above any real predictor, far below a lie that hurts
_LIMITS = {
    "hidden": 16384,
    "blocks": 128,
    "heads": 256,
    "code": 8192,
    "rank": 1024,
    "token_dim": 65536,
}
_MAX_LAYERS = 8192
_MAX_WIDTH = 1 << 20
_LAYER_ENTRIES = ("weight", "rows", "d_in", "d_out")


@dataclass(frozen=True)
class LayerSpec:
    """One adapted layer: a host weight (see `lora.Target`) or the rows (start, length) of a fused one."""

    weight: str
    rows: tuple[int, int] | None
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        if not isinstance(self.weight, str) or not self.weight:
            raise I2LError(f"an adapted layer needs the name of a weight, got {shown(self.weight)}")
        for name in ("d_in", "d_out"):
            check_int(f"{name} of {self.weight}", getattr(self, name), _MAX_WIDTH)
        if self.rows is None:
            return
        pair = len(self.rows) == 2 and all(type(n) is int for n in self.rows)
        if not pair or not 0 <= self.rows[0] < _MAX_WIDTH:
            raise I2LError(f"rows of {self.weight} must be (start, length) or none, got {shown(self.rows)}")
        if self.rows[1] != self.d_out:
            raise I2LError(f"{self.weight}: {self.rows[1]} rows, but d_out is {self.d_out}")

    @property
    def target(self) -> Target:
        return Target(self.weight, self.rows)


@dataclass(frozen=True)
class QueryConfig:
    """Everything that fixes the shapes of a QueryPredictor. Raises I2LError when a size is out of bounds."""

    hidden: int  # width of the transformer
    blocks: int  # number of transformer blocks
    heads: int  # attention heads; hidden / heads is the width of one
    code: int  # compressed width c between a query state and a row (or column)
    rank: int  # k: rows of each A, columns of each B
    token_dim: int  # D: width of the vision encoder's tokens
    layers: tuple[LayerSpec, ...]  # the L adapted layers; their order fixes the order of the stored heads
    mlp_ratio: float = 4.0  # width of a block's MLP over `hidden`
    alpha: float = 1.0  # initial value of every alpha_l

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            check_int(f"predictor {name}", getattr(self, name), limit)
        if self.hidden % self.heads:
            raise I2LError(f"predictor hidden {self.hidden} is not a multiple of its {self.heads} heads")
        for name, limit in (("mlp_ratio", 16.0), ("alpha", 1e4)):
            check_number(f"predictor {name}", getattr(self, name), 0, limit)
        if not 1 <= len(self.layers) <= _MAX_LAYERS:
            raise I2LError(f"a predictor adapts 1 to {_MAX_LAYERS} layers, got {len(self.layers)}")
        seen: dict[str, list[LayerSpec]] = {}
        for layer in self.layers:
            for other in seen.setdefault(layer.weight, []):
                if _overlap(layer.rows, other.rows):
                    raise I2LError(f"adapted layers overlap: {other.target} and {layer.target}")
                if layer.d_in != other.d_in:
                    raise I2LError(f"d_in differs inside one weight: {other.target} and {layer.target}")
            seen[layer.weight].append(layer)

    @property
    def mlp(self) -> int:
        return max(1, round(self.hidden * self.mlp_ratio))

    @property
    def n_queries(self) -> int:
        return 2 * self.rank * len(self.layers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> QueryConfig:
        """The inverse of `to_json`. Raises I2LError naming an unknown, missing or wrong entry."""
        data = check_entries("predictor", data, (field.name for field in fields(cls)))
        if not isinstance(data["layers"], (list, tuple)):
            raise I2LError(f"predictor layers must be a list, got {type(data['layers']).__name__}")
        if len(data["layers"]) > _MAX_LAYERS:
            raise I2LError(f"a predictor adapts 1 to {_MAX_LAYERS} layers, got {len(data['layers'])}")
        layers = []
        for i, entry in enumerate(data["layers"]):
            entry = check_entries(f"predictor layers[{i}]", entry, _LAYER_ENTRIES)
            rows = entry["rows"]
            if rows is not None and not isinstance(rows, (list, tuple)):
                raise I2LError(f"predictor layers[{i}] rows must be a pair or null, got {shown(rows)}")
            layers.append(LayerSpec(**{**entry, "rows": None if rows is None else tuple(rows)}))
        return cls(**{**data, "layers": tuple(layers)})


@dataclass(frozen=True, eq=False)
class Prediction:
    """LoRAs for a batch of B styles, still in the form the heads made them: one tensor per group.

    `rows[i]`: (B, G, k, d) for `groups[i]`, the rows of A or the columns of B of its G layers.
    Differentiable; the views of `layers()` share memory with it.
    """

    config: QueryConfig
    groups: tuple[Group, ...]
    rows: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return self.rows[0].shape[0]

    def layers(self) -> dict[Target, tuple[Tensor, Tensor]]:
        """Target -> (down (B, k, d_in), up (B, d_out, k)), alpha folded into up, in the configured order."""
        found: dict[tuple[str, int], Tensor] = {}
        for group, rows in zip(self.groups, self.rows, strict=True):
            for member, layer in enumerate(group.members):
                found[group.kind, layer] = rows[:, member]
        # columns of B: (B, k, d_out) -> (B, d_out, k)
        return {
            layer.target: (found["A", i], found["B", i].transpose(1, 2))
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


class QueryPredictor(nn.Module):
    """Image tokens to LoRAs, many styles at once.

    `ops` gives Linear, LayerNorm and RMSNorm: torch.nn, or a namespace of the host's that casts and
    offloads. Weights are initialised only with torch.nn and off the meta device; otherwise load a state dict.
    A fresh predictor is the identity: the columns of B are zero, the rows of A have about unit length.
    """

    def __init__(
        self,
        config: QueryConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        ops: ModuleType | Any = nn,
    ) -> None:
        super().__init__()
        self.config = config
        kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        self.queries = nn.Parameter(torch.empty(config.n_queries, config.hidden, **kwargs))
        self.token_norm = ops.LayerNorm(config.token_dim, **kwargs)
        # the bias is the type embedding that tells image tokens from queries
        self.token_in = ops.Linear(config.token_dim, config.hidden, **kwargs)
        self.blocks = nn.ModuleList(Block(config, ops, kwargs) for _ in range(config.blocks))
        self.out_norm = ops.LayerNorm(config.hidden, **kwargs)
        self.groups = _groups(config)
        self.heads = nn.ModuleDict({g.name: Head(g, config, kwargs) for g in self.groups})
        if ops is nn and not self.queries.is_meta:
            self.reset_parameters()

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Prediction:
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
        return Prediction(config, self.groups, tuple(rows))

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
            assert isinstance(block, Block)
            for linear in (block.attention_out, block.mlp_out):  # the residual stream keeps its size
                linear.weight.mul_((2 * self.config.blocks) ** -0.5)
        for group in self.groups:
            head = self.heads[group.name]
            assert isinstance(head, Head)
            nn.init.normal_(head.compress, std=self.config.hidden**-0.5)
            nn.init.normal_(head.expand, std=0.0 if group.kind == "B" else self.config.code**-0.5)
            if head.alpha is not None:
                nn.init.constant_(head.alpha, self.config.alpha)


class Block(nn.Module):
    """A single-stream pre-norm transformer block: queries and image tokens share every weight."""

    def __init__(self, config: QueryConfig, ops: ModuleType | Any, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads = config.heads
        head_dim = config.hidden // config.heads
        self.attention_norm = ops.LayerNorm(config.hidden, **kwargs)
        self.query = ops.Linear(config.hidden, config.hidden, bias=False, **kwargs)
        self.key_value = ops.Linear(config.hidden, 2 * config.hidden, bias=False, **kwargs)
        self.query_norm = ops.RMSNorm(head_dim, eps=1e-6, **kwargs)
        self.key_norm = ops.RMSNorm(head_dim, eps=1e-6, **kwargs)
        self.attention_out = ops.Linear(config.hidden, config.hidden, **kwargs)
        self.mlp_norm = ops.LayerNorm(config.hidden, **kwargs)
        self.mlp_in = ops.Linear(config.hidden, config.mlp, **kwargs)
        self.mlp_out = ops.Linear(config.mlp, config.hidden, **kwargs)

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

    def __init__(self, group: Group, config: QueryConfig, kwargs: dict[str, Any]) -> None:
        super().__init__()
        size = len(group.members)
        self.compress = nn.Parameter(torch.empty(size, config.hidden, config.code, **kwargs))  # C, transposed
        self.expand = nn.Parameter(torch.empty(size, config.code, group.width, **kwargs))  # D, transposed
        self.alpha = nn.Parameter(torch.empty(size, **kwargs)) if group.kind == "B" else None
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
class Group:
    """The heads that run as one batched product: `members` are indices into the configuration's layers."""

    kind: Literal["A", "B"]
    width: int  # d: d_in for A, d_out for B
    members: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.width}"


def _groups(config: QueryConfig) -> tuple[Group, ...]:
    members: dict[tuple[Literal["A", "B"], int], list[int]] = {}
    for i, layer in enumerate(config.layers):
        members.setdefault(("A", layer.d_in), []).append(i)
        members.setdefault(("B", layer.d_out), []).append(i)
    return tuple(Group(kind, width, tuple(found)) for (kind, width), found in sorted(members.items()))


def _cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A raw parameter where and as the host wants to compute; itself when it is there already."""
    return parameter.to(device=like.device, dtype=like.dtype)


def _overlap(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    return a is None or b is None or (a[0] < b[0] + b[1] and b[0] < a[0] + a[1])
