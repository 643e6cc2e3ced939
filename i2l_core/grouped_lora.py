"""Low-rank products that differ between groups of batch rows, without a loop over rows.

    y[g] += (x[g] @ A[g]^T * gate[g]) @ B[g]^T          g = group of consecutive rows

Each Linear needs two batched products, whatever the number of groups and LoRAs. LoRAs that act on the same rows are
concatenated along the rank, with their strengths folded into B; groups of lower rank are zero-padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import I2LError
from .lora import LowRank, Target


@dataclass(frozen=True, eq=False)
class GroupedLoRA:
    """What one Linear adds, for G equal groups of consecutive batch rows.

    Both tensors are ready for a batched product. `lora_index` gives, for each column of the rank, the number of
    its LoRA as passed to `stack` (-1 for padding). Gates are looked up by it.
    """

    down: Tensor  # (G, d_in, K)
    up: Tensor  # (G, K, d_out)
    lora_index: tuple[tuple[int, ...], ...]  # (G, K)

    @property
    def groups(self) -> int:
        return self.down.shape[0]

    def add_to(self, out: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """`out` plus the products, in place where no gradient is recorded.

        `x`: (rows, ..., d_in), `out`: (rows, ..., d_out), rows a multiple of G. They may differ in dtype.
        `gate`: (G, rows / G * tokens, K), or (G, 1, K) for all tokens alike, or None.
        """
        groups, d_in, _ = self.down.shape
        if x.shape[0] % groups:
            raise I2LError(f"{x.shape[0]} batch rows cannot be split into {groups} equal groups")
        out = out.contiguous()
        flat_x, flat_out = x.reshape(groups, -1, d_in), out.view(groups, -1, out.shape[-1])
        down, up = self.down.to(x.dtype), self.up.to(out.dtype)  # no copy when it is the same
        if groups == 1 and gate is None:
            hidden = (flat_x[0] @ down[0]).to(out.dtype)
            if out.requires_grad or hidden.requires_grad:
                return torch.addmm(flat_out[0], hidden, up[0]).view_as(out)
            flat_out[0].addmm_(hidden, up[0])
            return out
        hidden = torch.bmm(flat_x, down)
        if gate is not None:
            hidden = hidden * gate
        hidden = hidden.to(out.dtype)
        if out.requires_grad or hidden.requires_grad:
            return torch.baddbmm(flat_out, hidden, up).view_as(out)
        flat_out.baddbmm_(hidden, up)
        return out


def stack(
    groups: Sequence[Sequence[tuple[int, LowRank, float]]],
    device: torch.device | str,
    dtype: torch.dtype,
) -> GroupedLoRA | None:
    """Stack the LoRA layers of one Linear. `groups`: per group its layers as (number, layer, strength).

    None when no group has any. Layers must agree on d_in and d_out; strengths are folded in in the layer's own
    dtype, before the cast.
    """
    layers = [layer for group in groups for _, layer, _ in group]
    if not layers:
        return None
    sizes = {(layer.d_in, layer.d_out) for layer in layers}
    if len(sizes) != 1:
        raise I2LError(f"LoRA layers of one Linear differ in (d_in, d_out): {sorted(sizes)}")
    ((d_in, d_out),) = sizes
    rank = max(sum(layer.rank for _, layer, _ in group) for group in groups)
    down = torch.zeros(len(groups), d_in, rank, device=device, dtype=dtype)
    up = torch.zeros(len(groups), rank, d_out, device=device, dtype=dtype)
    lora_index = []
    for g, group in enumerate(groups):
        indices: list[int] = []
        for number, layer, strength in group:
            columns = slice(len(indices), len(indices) + layer.rank)
            down[g, :, columns] = layer.down.T.to(device=device, dtype=dtype)
            up[g, columns] = (layer.up * strength).T.to(device=device, dtype=dtype)
            indices += [number] * layer.rank
        lora_index.append(tuple(indices + [-1] * (rank - len(indices))))
    return GroupedLoRA(down, up, tuple(lora_index))


def from_batched(
    layers: Mapping[Target, tuple[Tensor, Tensor]], widths: Mapping[str, int]
) -> dict[str, GroupedLoRA]:
    """Weight -> GroupedLoRA, from the batched LoRAs of G groups that a predictor outputs. Differentiable.

    `layers`: target -> (down (G, k, d_in), up (G, d_out, k)). Layers on rows of one weight become one product, with
    zeros in B beside their rows, as `lora.to_whole_weights` does. `widths`: weight -> d_out of the whole weight.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for target, (down, up) in layers.items():
        if target.rows is not None:
            start, length = target.rows
            below = widths[target.weight] - start - length
            up = F.pad(up, (0, 0, start, below))  # (G, d_out of the weight, k)
        parts.setdefault(target.weight, []).append((down, up))
    products = {}
    for weight, pairs in parts.items():
        down = torch.cat([down for down, _ in pairs], dim=1).mT  # (G, d_in, K)
        up = torch.cat([up for _, up in pairs], dim=2).mT  # (G, K, d_out)
        products[weight] = GroupedLoRA(down, up, ((0,) * up.shape[1],) * up.shape[0])
    return products
