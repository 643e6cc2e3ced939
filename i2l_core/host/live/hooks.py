"""One forward hook on each adapted Linear, and masks as weights of what they add."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...base_models import ARCHITECTURES
from ...errors import I2LError
from ...grouped_lora import GroupedLoRA
from ...lora import Target
from .image_tokens import ImageTokens

DOUBLED_BATCH_LAYERS = tuple(part for one in ARCHITECTURES for part in one.doubled_batch)


@dataclass(frozen=True, eq=False)
class ActiveLoRAs:
    """What the hooks of one forward do: products by weight, for these rows out of so many.

    `factors`: by number of a LoRA, what its strength is multiplied by now; 1 where it is not named.
    """

    products: Mapping[str, GroupedLoRA]
    span: slice
    rows: int
    masks: TokenMasks | None
    factors: Mapping[int, float]
    _scales: dict[Any, Tensor] = field(default_factory=dict)

    def gate(self, name: str, x: Tensor, products: GroupedLoRA) -> Tensor | None:
        """What the columns of a product are multiplied by: masks and factors, or None for neither."""
        gate = self.masks.of(name, x, products) if self.masks else None
        if not any(number in self.factors for indices in products.lora_index for number in indices):
            return gate
        key = products.lora_index, x.dtype
        if key not in self._scales:
            columns = [[[self.factors.get(j, 1.0) for j in indices]] for indices in products.lora_index]
            scale = torch.tensor(columns, dtype=x.dtype)  # (G, 1, K)
            self._scales[key] = scale.to(x.device, non_blocking=True)
        return self._scales[key] if gate is None else gate * self._scales[key]


class Hooks:
    """One forward hook on each Linear that any LoRA names. They do nothing unless told to."""

    def __init__(self, network: nn.Module, targets: Sequence[Target]) -> None:
        self._acting: ActiveLoRAs | None = None
        self._handles = [
            network.get_submodule(target.weight).register_forward_hook(self._hook(target.weight))
            for target in targets
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def now(self) -> ActiveLoRAs | None:
        """What the hooks are told to do at this moment."""
        return self._acting

    @contextlib.contextmanager
    def acting(self, acting: ActiveLoRAs | None) -> Iterator[None]:
        outer, self._acting = self._acting, acting
        try:
            yield
        finally:
            self._acting = outer

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            acting = self._acting
            products = acting.products.get(name) if acting else None
            if acting is None or products is None:
                return None
            return _add(name, args[0], out, products, acting)

        return add


def _add(name: str, x: Tensor, out: Tensor, products: GroupedLoRA, acting: ActiveLoRAs) -> Tensor:
    span = acting.span
    if x.shape[0] == 2 * acting.rows and any(part in name for part in DOUBLED_BATCH_LAYERS):
        halves = zip(x.chunk(2), out.chunk(2), strict=True)
        return torch.cat([_add(name, one, added, products, acting) for one, added in halves])
    if x.shape[0] != acting.rows:
        if span != slice(0, acting.rows) or products.groups != 1 or acting.masks is not None:
            raise I2LError(
                f"{name} runs on {x.shape[0]} rows of a batch of {acting.rows}: which of them are positive "
                "cannot be told, so LoRAs that differ between the branches cannot act on it here"
            )
        span = slice(0, x.shape[0])
    gate = acting.gate(name, x[span], products)
    if span == slice(0, x.shape[0]):
        return products.add_to(out, x, gate)
    added = products.add_to(out[span], x[span], gate)
    if added.data_ptr() == out[span].data_ptr():
        return out
    return torch.cat([out[: span.start], added, out[span.stop :]])


class TokenMasks:
    """Masks as weights of the columns of a product. Layers of the same sizes share them, and all steps do."""

    def __init__(self, tokens: ImageTokens, masks: Mapping[int, Tensor], rows: int) -> None:
        self._tokens = tokens
        self._masks = masks
        self._rows = rows  # of one chunk: one mask of a batch each
        self._made: dict[Any, Tensor] = {}

    def of(self, name: str, x: Tensor, products: GroupedLoRA) -> Tensor | None:
        """(G, rows / G * tokens, K) for `GroupedLoRA.add_to`, or None when none of its LoRAs has a mask."""
        if not any(number in self._masks for indices in products.lora_index for number in indices):
            return None
        count = x.shape[1] if x.ndim == 3 else None
        key = count, self._tokens.is_text(name), x.shape[0], products.lora_index
        if key not in self._made:
            self._made[key] = self._make(name, count, x, products)
        return self._made[key]

    def _make(self, name: str, count: int | None, x: Tensor, products: GroupedLoRA) -> Tensor:
        groups = len(products.lora_index)
        ones = torch.ones(x.shape[0] // groups, count or 1)
        columns = {}  # by number of a LoRA; what has no mask, and filling, is not there
        for number, mask in self._masks.items():
            weights = self._tokens.weigh(mask.float().cpu(), name, count)
            columns[number] = weights.expand(self._rows, -1).repeat(len(ones) // self._rows, 1)
        gate = torch.stack(
            [
                torch.stack([columns.get(j, ones) for j in indices], -1).flatten(0, 1)
                for indices in products.lora_index
            ]
        )
        return gate.to(x.device, x.dtype)
