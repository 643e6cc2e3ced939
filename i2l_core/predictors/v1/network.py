"""The image-to-LoRA predictors of version 1: one embedding per picture, one small network per matrix.

    A = reshape(P_A (C_A x + r), (rank, d_in))      B = reshape(P_B (C_B x + r), (d_out, rank))

x is the embedding of the picture. r is a residual shared by all matrices of a block, r = U flatten(V z / 20) with
hidden states z of a vision-language model; it is zero for predictors without residual. N pictures give the weighted
mean of their changes as one LoRA of N times the rank: sum_n w_n B_n A_n, where sum_n w_n = 1.

The networks of equal shape are stored stacked: all C are one product, all P of one width another, for all
pictures at once. Every weight is read once per prediction, so weights on another device or in
another dtype are copied in pieces and never exist twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checks import listed
from ...errors import I2LError
from ...files.safetensors import check_dtypes, check_finite, open_safetensors, shapes_and_dtypes
from ...lora import LoRA, LowRank
from .kinds import V1Config, recognise

RESIDUAL_SCALE = 0.05  # as these predictors were trained
PIECE_BYTES = 1 << 27  # of weights that are brought over at once


@dataclass(frozen=True, eq=False)
class LoadedV1:
    """A predictor of version 1 and the name of its file, without the extension."""

    config: V1Config
    predictor: V1Network
    name: str

    @property
    def dtype(self) -> torch.dtype:
        """of the file"""
        return next(self.predictor.parameters()).dtype


class V1Network(nn.Module):
    """Embeddings of pictures -> the LoRA of their style. Weights come from a state dict or `load_v1`."""

    def __init__(
        self,
        config: V1Config,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config

        def stack(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)

        runs = [(width, len(list(heads))) for width, heads in groupby(config.heads, lambda head: head.width)]
        self.compress = stack(len(config.heads), config.code, config.token_dim)  # all C
        # all P
        self.expand = nn.ParameterList(
            stack(count, config.rank * width, config.code) for width, count in runs
        )
        self.residual_in = self.residual_out = None  # all V, all U
        if config.residual:
            length, width, code = config.residual.length, config.residual.width, config.residual.code
            self.residual_in = stack(len(config.blocks), code, width)
            self.residual_out = stack(len(config.blocks), config.code, length * code)

    def forward(
        self,
        embeddings: Tensor,
        weights: Sequence[float] | None = None,
        residuals: Tensor | None = None,
    ) -> LoRA:
        """One LoRA from N pictures, in the dtype and on the device of their embeddings.

        `embeddings`: (N, D). `weights`: how much each picture counts, any scale; 2 equals giving it twice, 0
        leaving it out, None means equally. `residuals`: (N, T, R) hidden states, for a predictor that reads
        them. The rank is `config.rank` per picture that counts.
        Raises I2LError if all weights are 0, or if residuals are missing or not expected.
        """
        config = self.config
        if (residuals is None) != (config.residual is None):
            reads, got = ("reads", "none") if residuals is None else ("reads no", "some")
            raise I2LError(f"{config.title} {reads} hidden states besides the embeddings, got {got}")
        used, normalised = _normalised(weights, len(embeddings))
        count = len(used)
        x = embeddings[used].expand(len(config.heads), -1, -1)
        codes = torch.cat(list(_products(x, self.compress)))  # (H, N, c)
        if residuals is not None:
            codes += self._residual_codes(residuals[used])[[head.block for head in config.heads]]
        in_a = [head.matrix == "A" for head in config.heads]
        codes[in_a] *= codes.new_tensor(normalised)[:, None]

        stacks = list(self.expand)
        parts = codes.split([len(stack) for stack in stacks])
        decoded = (rows for pair in zip(parts, stacks, strict=True) for rows in _products(*pair))
        downs: dict[int, Tensor] = {}
        ups: dict[int, Tensor] = {}
        for head, rows in zip(config.heads, chain.from_iterable(decoded), strict=True):
            if head.matrix == "A":
                part, side = rows.view(count, config.rank, head.width), downs
            else:  # (N, d_out, rank) -> (d_out, N, rank)
                part, side = rows.view(count, head.width, config.rank).transpose(0, 1), ups
            # memory of its own, or every layer would keep the whole product that it is a part of
            side[head.layer] = part.clone(memory_format=torch.contiguous_format)
        layers = {
            layer.target: layer.place(LowRank(downs[i].flatten(0, 1), ups[i].flatten(1)))
            for i, layer in enumerate(config.adapted_layers)
        }
        return LoRA(layers, base_model=config.base_model.id)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a file, by name: views of the stacked parameters."""
        config = self.config
        tensors: dict[str, Tensor] = {}
        places = chain.from_iterable(self.expand)
        for head, compress, expand in zip(config.heads, self.compress, places, strict=True):
            tensors[f"{head.prefix}.proj_in.weight"] = compress
            tensors[f"{head.prefix}.proj_out.weight"] = expand
        if self.residual_in is not None and self.residual_out is not None:
            for block, part_in, part_out in zip(
                config.blocks, self.residual_in, self.residual_out, strict=True
            ):
                tensors[f"{block.prefix}proj_residual.proj_in.weight"] = part_in
                tensors[f"{block.prefix}proj_residual.proj_out.weight"] = part_out
        return tensors

    def _residual_codes(self, residuals: Tensor) -> Tensor:
        """(N, T, R) -> (blocks, N, c)"""
        assert self.residual_in is not None
        assert self.residual_out is not None
        states = residuals * RESIDUAL_SCALE
        step = _step(self.residual_out, states)
        codes = []
        for first, second in zip(self.residual_in.split(step), self.residual_out.split(step), strict=True):
            hidden = F.linear(states, first.to(states).flatten(0, 1))  # (N, T, g m)
            hidden = hidden.unflatten(-1, (len(first), -1)).permute(2, 0, 1, 3).flatten(2)  # (g, N, T m)
            codes.append(torch.bmm(hidden, second.to(states).mT))
        return torch.cat(codes)


def peek_v1(path: str | Path) -> tuple[V1Config, torch.dtype]:
    """What a file of version 1 is, from its header alone. Raises I2LError as `load_v1` does, except for values."""
    with open_safetensors(Path(path)) as file:
        return _header(file)


def load_v1(path: str | Path) -> LoadedV1:
    """Read a predictor of version 1: on the CPU, in the dtype of the file.

    The tensors go one by one into the stacked parameters: memory for one of them beside the predictor.
    Raises I2LError naming the file when it is damaged, is something else, lacks a tensor or holds another, or
    holds NaN or infinity.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        config, dtype = _header(file)
        predictor = V1Network(config, dtype=dtype)
        for name, place in predictor.tensors().items():
            tensor = file.get_tensor(name)
            check_finite(name, tensor)
            place.copy_(tensor)
    return LoadedV1(config, predictor.eval(), path.stem)


def _header(file: Any) -> tuple[V1Config, torch.dtype]:
    shapes, dtypes = shapes_and_dtypes(file)
    return recognise(shapes), check_dtypes(dtypes.values(), "its tensors")


def _normalised(weights: Sequence[float] | None, count: int) -> tuple[list[int], list[float]]:
    """The pictures whose weight is not 0, and their weights, which add up to 1."""
    if weights is None:
        weights = [1.0] * count
    if len(weights) != count or not all(0 <= weight < math.inf for weight in weights):
        raise I2LError(
            f"expected a weight of 0 or more for each of {count} pictures, got {listed(map(str, weights))}"
        )
    used = [i for i, weight in enumerate(weights) if weight > 0]
    if not used:
        raise I2LError("the weights of all pictures are 0; give at least one of them a weight above 0")
    whole = math.fsum(weights)
    return used, [weights[i] / whole for i in used]


def _products(x: Tensor, stack: Tensor) -> Iterator[Tensor]:
    """x (G, N, k) times the transposed of each of stack (G, m, k), some at a time: (g, N, m)."""
    step = _step(stack, x)
    for part, weights in zip(x.split(step), stack.split(step), strict=True):
        yield torch.bmm(part, weights.to(x).mT)


def _step(stack: Tensor, like: Tensor) -> int:
    """How many of the stacked weights are brought over at once."""
    return max(1, PIECE_BYTES // (stack[0].numel() * like.element_size()))
