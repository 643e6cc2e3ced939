"""One forward hook on each adapted Linear, and masks as weights of what they add.

Hooks also count: a Linear that did not run while a module around it did was computed by a function that reads its
weight (a fused kernel), and what a hook adds would be lost there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...base_models import ARCHITECTURES
from ...checks import listed
from ...errors import I2LError
from ...grouped_lora import GroupedLoRA
from .image_tokens import ImageTokens

DOUBLED_BATCH_LAYERS = tuple(part for one in ARCHITECTURES for part in one.doubled_batch)

ONE_LORA_FOR_BOTH = "use one LoRA for both sides (Apply Predicted LoRA, mode merged)"


@dataclass(frozen=True, eq=False)
class ActiveLoRAs:
    """What the hooks of one forward add: products by weight, on `span` of its `rows` batch rows.

    `factors`: by index of a LoRA, what its strength is multiplied by now; 1 where it is not named.
    """

    products: Mapping[str, GroupedLoRA]
    span: slice
    rows: int
    masks: TokenMasks | None
    factors: Mapping[int, float]
    _scales: dict[Any, Tensor] = field(default_factory=dict)

    def gate(self, name: str, x: Tensor, products: GroupedLoRA) -> Tensor | None:
        """The weights of the columns of a product, from masks and factors; None for neither."""
        gate = self.masks.of(name, x, products) if self.masks else None
        if not any(number in self.factors for indices in products.lora_index for number in indices):
            return gate
        key = products.lora_index, x.device, x.dtype
        if key not in self._scales:
            columns = [[[self.factors.get(j, 1.0) for j in indices]] for indices in products.lora_index]
            scale = torch.tensor(columns, dtype=x.dtype)  # (G, 1, K)
            self._scales[key] = scale.to(x.device, non_blocking=True)
        return self._scales[key] if gate is None else gate * self._scales[key]


class Hooks:
    """One forward hook on each Linear that any LoRA names. They add nothing outside of `acting`.

    `layers`: weight -> its Linear. `around`: name -> module, of the modules around them but the network itself.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], around: Mapping[str, nn.Module] | None = None
    ) -> None:
        self._acting: ActiveLoRAs | None = None
        self._slow: dict[str, nn.Module] = {}
        self._layers = dict(layers)
        self._ran: set[str] = set()
        self._entered: set[str] = set()
        self._handles: list[Any] = []
        try:
            for name, layer in layers.items():
                self._handles.append(layer.register_forward_hook(self._hook(name)))
            for name, module in (around or {}).items():
                self._handles.append(module.register_forward_pre_hook(self._enter(name)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for layer in self._slow.values():
            layer.weight_function = [f for f in layer.weight_function if f is not _as_it_is]  # type: ignore
        self._slow.clear()

    @property
    def now(self) -> ActiveLoRAs | None:
        """What the hooks add at this moment."""
        return self._acting

    @contextlib.contextmanager
    def acting(self, acting: ActiveLoRAs | None) -> Iterator[None]:
        outer, self._acting = self._acting, acting
        try:
            yield
        finally:
            self._acting = outer

    def begin_forward(self) -> None:
        """Count from zero."""
        self._ran.clear()
        self._entered.clear()

    @property
    def ran(self) -> bool:
        """Whether any layer ran since `begin_forward`."""
        return bool(self._ran)

    def passed_by(self) -> list[str]:
        """Layers that did not run since `begin_forward` although a module around them did.

        The network itself counts as run when any layer did: a node that skips a step enters it too.
        """
        if len(self._ran) == len(self._layers):
            return []
        left = (name for name in self._layers if name not in self._ran)
        return [
            name
            for name in left
            if not self._entered.isdisjoint(modules_around(name)) or ("." not in name and self._ran)
        ]

    def refuse_passed_by(self) -> None:
        """Raise I2LError naming the layers that `passed_by` finds."""
        if names := self.passed_by():
            raise I2LError(passed_by_message(names))

    def take_slow_road(self, names: Iterable[str]) -> None:
        """Have ComfyUI compute these layers as modules: it does for a Linear with a weight function.

        Raises I2LError for layers that are not ComfyUI's.
        """
        for name in names:
            layer = self._layers[name]
            if name in self._slow or not isinstance(getattr(layer, "weight_function", None), list):
                raise I2LError(passed_by_message([name]))
            layer.weight_function = [*layer.weight_function, _as_it_is]  # type: ignore
            self._slow[name] = layer

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._entered.add(name)

        return enter

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            self._ran.add(name)
            acting = self._acting
            products = acting.products.get(name) if acting else None
            if acting is None or products is None:
                return None
            if is_recorded(out):
                raise I2LError(
                    "the model is being recorded as a CUDA graph, which would replay live LoRAs as they are now: "
                    f"switch CUDA graphs off for this MODEL, or {ONE_LORA_FOR_BOTH}"
                )
            return _add(name, args[0], out, products, acting)

        return add


def modules_around(name: str) -> list[str]:
    """Names of the modules that a layer is in, but for the network: a.b.c is in a.b and a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def is_recorded(out: Tensor) -> bool:
    """Whether what makes `out` is being recorded as a CUDA graph."""
    return out.is_cuda and torch.cuda.is_current_stream_capturing()


def passed_by_message(names: Iterable[str]) -> str:
    return (
        f"live LoRAs cannot act on {listed(names)}: ComfyUI or a node computes these layers from their weights, "
        "without running them (fused kernels, packed weights); use Apply Predicted LoRA in mode merged, or load the "
        "model in a format that ComfyUI itself reads"
    )


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _add(name: str, x: Tensor, out: Tensor, products: GroupedLoRA, acting: ActiveLoRAs) -> Tensor:
    span = acting.span
    if x.shape[0] == 2 * acting.rows and any(part in name for part in DOUBLED_BATCH_LAYERS):
        halves = zip(x.chunk(2), out.chunk(2), strict=True)
        return torch.cat([_add(name, one, added, products, acting) for one, added in halves])
    if x.shape[0] != acting.rows:
        if span != slice(0, acting.rows) or products.groups != 1:
            raise I2LError(
                f"{name} runs on {x.shape[0]} batch rows where ComfyUI sent {acting.rows}: a node such as NAG adds or "
                "regroups rows inside the model, so they cannot be split into positive and negative rows; take that "
                f"node out, or {ONE_LORA_FOR_BOTH}"
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
    """Masks as weights of the columns of a product. Layers of the same sizes share them, and all steps do.

    `masks`: index of a LoRA -> (N, H, W), N = 1 or `rows`, the rows of one chunk.
    """

    def __init__(self, tokens: ImageTokens, masks: Mapping[int, Tensor], rows: int) -> None:
        self._tokens = tokens
        self._masks = masks
        self._rows = rows
        self._made: dict[Any, Tensor] = {}

    def of(self, name: str, x: Tensor, products: GroupedLoRA) -> Tensor | None:
        """(G, rows / G * tokens, K) for `GroupedLoRA.add_to`, or None when none of its LoRAs has a mask."""
        if not any(number in self._masks for indices in products.lora_index for number in indices):
            return None
        count = x.shape[1] if x.ndim == 3 else None
        key = count, self._tokens.kind(name), x.shape[0], products.lora_index, x.device, x.dtype
        if key not in self._made:
            self._made[key] = self._make(name, count, x, products)
        return self._made[key]

    def _make(self, name: str, count: int | None, x: Tensor, products: GroupedLoRA) -> Tensor:
        groups, rows = len(products.lora_index), x.shape[0] // len(products.lora_index)
        ones = torch.ones(rows, count or 1)
        columns = {}  # by index of a LoRA; what has no mask, and filling, is not there
        for number, mask in self._masks.items():
            weights = self._tokens.weigh(mask.float().cpu(), name, count)
            if len(weights) > 1 and rows % self._rows:
                raise I2LError(
                    f"{name} runs on {rows} batch rows, which do not fit the {len(weights)} masks of the pictures: a "
                    "node regroups the batch; give one mask for all pictures, or take that node out"
                )
            columns[number] = (
                weights.repeat(rows // self._rows, 1) if len(weights) > 1 else weights.expand(rows, -1)
            )
        gate = torch.stack(
            [
                torch.stack([columns.get(j, ones) for j in indices], -1).flatten(0, 1)
                for indices in products.lora_index
            ]
        )
        assert gate.shape[0] == groups
        return gate.to(x.device, x.dtype)
