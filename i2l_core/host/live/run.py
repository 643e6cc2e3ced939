"""One sampling with live LoRAs: which batch rows are positive, which LoRAs are active at this sigma, their stacks.

All that a run makes ends with it: hooks on networks, stacked LoRAs on devices, keys and values.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ...errors import I2LError
from ...grouped_lora import GroupedLoRA, stack
from ..percents import SigmaToPercent
from ..prefix_cache import PrefixCaches
from .branches import Branch, Chunk, ChunkOfUuid, branches_of, chunks_of
from .hooks import ONE_LORA_FOR_BOTH, ActiveLoRAs, Hooks, TokenMasks, modules_around, passed_by_message
from .image_tokens import ImageTokens
from .loras import LiveLoRA, LiveSet, check_mask_fits
from .network import network_of, submodule, uncompiled

_STACKS_KEPT = 4  # at once: two branches in forwards of their own, before and after a change
_MASKS_KEPT = 16

Group = tuple[tuple[int, float], ...]  # (index of a live LoRA, its strength), what acts on a group of rows
Plan = tuple[Group, ...]


@dataclass(frozen=True, eq=False)
class CondBatch:
    """The cond lists that the next forwards are chunks of.

    `branches`: of each list. `rows`: of one chunk. `reference`: the text tensors that ComfyUI made for the forward
    under way, by name. `retained`: numbers of the pictures that context windows over the batch keep.
    """

    branches: tuple[Branch | None, ...]
    rows: int
    reference: threading.local
    retained: tuple[int, ...] = ()


class SamplingRun:
    """One sampling: its conditionings, hooks, and stacked LoRAs by device.

    `sampling`: the model's sampling, for sigmas. `latent`: shape of the batch of latents; None where no guider
    tells it. `layers`: weight -> Linear of the network as it was loaded, for nodes that hide blocks while they run.
    """

    def __init__(
        self,
        live: LiveSet,
        chunk_of: ChunkOfUuid,
        sampling: Any,
        latent: Sequence[int] | None,
        layers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._live = live
        self.chunk_of = chunk_of
        self._batches: list[CondBatch] = []
        self._own = threading.local()  # the batch that this thread began
        self._latent = tuple(latent[-2:]) if latent else None
        self._layers = layers or {}
        self._windows = [_sigmas(one, sampling) for one in live.loras]
        curved = any(one.schedule.curve is not None for one in live.loras)
        self._percents = SigmaToPercent(sampling) if curved else None
        self._lock = threading.RLock()  # ComfyUI may run the chunks of a batch on several devices, in threads
        self._stacks: OrderedDict[Any, dict[str, GroupedLoRA]] = OrderedDict()
        self._masks: OrderedDict[Any, TokenMasks] = OrderedDict()
        self._caches: dict[int, PrefixCaches] = {}
        self._hooks: dict[int, Hooks] = {}
        self._inside: set[int] = set()
        self._ran = False

    @property
    def differs_by_row(self) -> bool:
        """Whether any LoRA acts on some conditionings only."""
        return any(live.branch is not None or live.tag is not None for live in self._live.loras)

    @contextlib.contextmanager
    def cond_batch(
        self, conds: Sequence[Sequence[Mapping[str, Any]] | None], x: Tensor, retained: Sequence[int] = ()
    ) -> Iterator[CondBatch]:
        """Within it forwards are chunks of these cond lists, for latents `x` (rows, C, ...)."""
        branches, outer = branches_of(conds, self.chunk_of), getattr(self._own, "batch", None)
        batch = CondBatch(branches, x.shape[0], threading.local(), tuple(retained))
        self._batches.append(batch)
        self._own.batch = batch
        try:
            yield batch
        finally:
            self._batches.remove(batch)
            self._own.batch = outer

    @property
    def _batch(self) -> CondBatch | None:
        """The batch that this thread began; in a thread for one device, the one that it is part of."""
        return getattr(self._own, "batch", None) or (self._batches[-1] if self._batches else None)

    def is_inside(self, network: nn.Module) -> bool:
        """Whether a forward of this network is under way that the run knows of."""
        return id(network) in self._inside

    def forward(
        self,
        model: BaseModel,
        options: Mapping[str, Any],
        x: Tensor,
        arguments: Mapping[str, Any],
        call: Callable[[], Tensor],
    ) -> Tensor:
        """`call()`, a forward of `model` on `x` (rows, C, ...), with the LoRAs that act now."""
        network = network_of(model)
        with self.acting(model, options, x, arguments) as hooks:
            out = call()
            lost = hooks.passed_by()
        if not lost:
            return out
        # ComfyUI computes a Linear that has a weight function as a module; what the first try left in nodes goes
        hooks.take_slow_road(lost)
        if model.current_patcher is not None:
            model.current_patcher.model_patches_call_function(function_name="cleanup")
        self._caches.pop(id(network), None)
        with self.acting(model, options, x, arguments) as hooks:
            out = call()
            if lost := hooks.passed_by():
                raise I2LError(passed_by_message(lost))
        return out

    @contextlib.contextmanager
    def acting(
        self, model: BaseModel, options: Mapping[str, Any], x: Tensor, arguments: Mapping[str, Any]
    ) -> Iterator[Hooks]:
        """Within it a forward of `model` on `x` (rows, C, ...) has the LoRAs that act now."""
        network = network_of(model)
        hooks = self._hooks_on(network)
        chunks = self._chunks(options, x, arguments)
        plan, factors = self._plan(chunks, options.get("sigmas"))
        with contextlib.ExitStack() as scope:
            caches = self._caches.setdefault(id(network), PrefixCaches())
            scope.enter_context(caches.of(network, (plan, tuple(factors.items()))))
            first, last = _span(plan)
            active = None
            if first < last:
                active = self._active(plan, factors, model, options, x, arguments)
            scope.enter_context(uncompiled())
            scope.enter_context(hooks.acting(active))
            hooks.begin_forward()
            self._inside.add(id(network))
            try:
                yield hooks
            finally:
                self._inside.discard(id(network))
            self._ran = self._ran or hooks.ran
            if active is not None and not self._ran:
                raise I2LError(
                    "live LoRAs cannot act on this MODEL: none of their layers runs in it, because a node replaced "
                    "the network or replays it (a compiled engine, a CUDA graph); use Apply Predicted LoRA in mode "
                    "merged, or take that node out"
                )

    def _active(
        self,
        plan: Plan,
        factors: Mapping[int, float],
        model: BaseModel,
        options: Mapping[str, Any],
        x: Tensor,
        arguments: Mapping[str, Any],
    ) -> ActiveLoRAs:
        count = len(plan)
        batch = self._batch
        rows = batch.rows if batch else x.shape[0] // count  # of one chunk
        first, last = _span(plan)
        groups = plan[first:last] if len(set(plan[first:last])) > 1 else plan[first : first + 1]
        if len(set(plan)) == 1:
            span = slice(0, x.shape[0])
        elif x.shape[0] == rows * count:
            span = slice(first * rows, last * rows)
        else:
            raise I2LError(
                f"a forward has {x.shape[0]} batch rows where ComfyUI made {rows * count}: a node such as Tiled "
                "Diffusion regroups them, so they cannot be split into positive and negative rows; set that node to "
                f"one tile or one prompt at a time (tile batch size 1), or {ONE_LORA_FOR_BOTH}"
            )
        stacks = self._stacked(groups, x.device, model.get_dtype_inference())
        masks = self._token_masks(network_of(model), x, arguments, options, max(1, rows))
        factors = {number: factor for number, factor in factors.items() if factor != 1}
        return ActiveLoRAs(stacks, span, x.shape[0], masks, factors)

    def close(self) -> None:
        """Leave nothing behind: no hook on any network, nothing on any device."""
        for hooks in self._hooks.values():
            hooks.remove()
        self._hooks.clear()
        self._stacks.clear()
        self._masks.clear()
        self._caches.clear()

    def _chunks(
        self, options: Mapping[str, Any], x: Tensor, arguments: Mapping[str, Any]
    ) -> tuple[Chunk, ...]:
        batch = self._batch
        found = chunks_of(options, self.chunk_of, batch.branches if batch else None)
        if not self.differs_by_row:
            return tuple(chunk or Chunk(Branch.POSITIVE) for chunk in found)
        if None in found:
            raise I2LError(
                "a node predicts with a prompt of its own, or without saying with which (the old Perp-Neg node, for "
                "example), and it is not known whether that is on the positive or the negative side; take that node "
                f"out (Perp-Neg Guider instead of Perp-Neg), or {ONE_LORA_FOR_BOTH}"
            )
        chunks = tuple(chunk for chunk in found if chunk is not None)
        reference = getattr(batch.reference, "tensors", None) if batch else None
        if reference and len(set(chunks)) > 1:
            _check_order(reference, arguments, len(chunks), x.shape[0])
        return chunks

    def _plan(self, chunks: tuple[Chunk, ...], sigmas: Tensor | None) -> tuple[Plan, dict[int, float]]:
        """What acts on each chunk, and by which factors those with a curve act now."""
        loras = self._live.loras
        sigma = 0.0
        if not all(live.schedule.is_constant for live in loras):
            if sigmas is None:
                raise I2LError(
                    "a node runs the model without telling the noise level, which start, end and curve of a live LoRA "
                    "need; take that node out, or set start 0, end 1 and no curve"
                )
            sigma = float(sigmas.flatten()[0])  # waits for the device: only where a window or curve needs it
        factors = {
            number: live.schedule.curve(self._percents.at(sigma))
            for number, live in enumerate(loras)
            if live.schedule.curve is not None and self._percents is not None
        }
        now = [
            (live.schedule.is_constant or low <= sigma <= high)
            and live.strength * factors.get(number, 1.0) != 0
            for number, (live, (high, low)) in enumerate(zip(loras, self._windows, strict=True))
        ]
        plan = tuple(
            tuple(
                (number, live.strength)
                for number, live in enumerate(loras)
                if now[number] and live.acts_on(chunk)
            )
            for chunk in chunks
        )
        return plan, factors

    def _stacked(self, groups: Plan, device: torch.device, dtype: torch.dtype) -> dict[str, GroupedLoRA]:
        key = groups, device, dtype
        with self._lock:
            if key in self._stacks:
                self._stacks.move_to_end(key)
                return self._stacks[key]
            layers = self._live.layers
            found = {}
            for target in self._live.targets:
                parts = [
                    [(j, layers[j][target], s) for j, s in group if target in layers[j]] for group in groups
                ]
                products = stack(parts, device, dtype)
                if products is not None:
                    found[target.weight] = products
            self._stacks[key] = found
            devices = len({device for _, device, _ in self._stacks})
            if len(self._stacks) > _STACKS_KEPT * devices:
                self._stacks.popitem(last=False)
            return found

    def _token_masks(
        self,
        network: nn.Module,
        x: Tensor,
        arguments: Mapping[str, Any],
        options: Mapping[str, Any],
        rows: int,
    ) -> TokenMasks | None:
        masks = {number: live.mask for number, live in enumerate(self._live.loras) if live.mask is not None}
        if not masks:
            return None
        for mask in masks.values() if self._latent is None else ():
            check_mask_fits(mask, (len(mask), *x.shape[1:]))
        if self._latent not in (None, tuple(x.shape[-2:])):
            raise I2LError(
                "a LoRA with a mask cannot be combined with prompts for an area of the picture, or with a node that "
                "runs the model on tiles; use masked prompts (Conditioning Set Mask) instead of areas, and Style "
                "Region instead of the mask"
            )
        batch = self._batch
        masks, window = in_window(masks, options, batch.retained if batch else ())
        tokens = ImageTokens.read(network, x, arguments)
        key = tokens, rows, x.device, window
        with self._lock:
            if key not in self._masks:
                self._masks[key] = TokenMasks(tokens, masks, rows)
            self._masks.move_to_end(key)
            if len(self._masks) > _MASKS_KEPT:
                self._masks.popitem(last=False)
            return self._masks[key]

    def _hooks_on(self, network: nn.Module) -> Hooks:
        with self._lock:
            if id(network) not in self._hooks:
                names = [target.weight for target in self._live.targets]
                layers = {name: self._layer(network, name) for name in names}
                around = {module for name in names for module in modules_around(name)}
                found = {name: module for name in around if (module := submodule(network, name)) is not None}
                self._hooks[id(network)] = Hooks(layers, found)
            return self._hooks[id(network)]

    def _layer(self, network: nn.Module, name: str) -> nn.Module:
        layer = submodule(network, name) or self._layers.get(name)
        if layer is None:
            raise I2LError(
                f"live LoRAs cannot act on {name}: a node replaced that part of the MODEL; take the node out, or use "
                "Apply Predicted LoRA in mode merged"
            )
        return layer


def _check_order(
    reference: Mapping[str, Tensor], arguments: Mapping[str, Any], chunks: int, rows: int
) -> None:
    """Raise I2LError when a node has given the model's rows another order than ComfyUI made them in."""
    for name, made in reference.items():
        now = arguments.get(name)
        if now is made or not torch.is_tensor(now) or now.shape != made.shape or len(made) != rows:
            continue
        # waits for the device, but only where a node made a tensor of its own
        distances = torch.cdist(now.flatten(1).double(), made.flatten(1).double())
        nearest, own = distances.min(dim=1), distances.diagonal()
        per_chunk = rows // chunks
        strangers = (nearest.indices // per_chunk) != torch.arange(rows, device=own.device) // per_chunk
        if bool((strangers & (nearest.values < own)).any()):
            raise I2LError(
                "a node gives the batch rows another order than ComfyUI made them in, so they cannot be split into "
                "positive and negative rows; set that node to one tile or one prompt at a time (tile batch size 1), "
                f"or {ONE_LORA_FOR_BOTH}"
            )


def in_window(
    masks: Mapping[int, Tensor], options: Mapping[str, Any], retained: Sequence[int]
) -> tuple[Mapping[int, Tensor], tuple[int, ...]]:
    """The masks of the pictures that a context window over the batch is at, and the numbers of these pictures."""
    window = options.get("context_window")
    if window is None or getattr(window, "dim", None) != 0:
        return masks, ()
    cut = {
        number: window.get_tensor(mask, dim=0, retain_index_list=list(retained))
        for number, mask in masks.items()
    }
    anchor = getattr(window, "causal_anchor_index", None)
    return cut, (-1 if anchor is None else anchor, *window.index_list)


def _span(plan: Plan) -> tuple[int, int]:
    """First and last + 1 chunk on which anything acts; equal when nothing does."""
    acting = [number for number, group in enumerate(plan) if group]
    return (acting[0], acting[-1] + 1) if acting else (0, 0)


def _sigmas(live: LiveLoRA, sampling: Any) -> tuple[float, float]:
    """Between which sigmas a LoRA acts, by the sampling of the model as it is now."""
    if live.schedule.is_constant:
        return math.inf, -math.inf
    return float(sampling.percent_to_sigma(live.schedule.start)), float(
        sampling.percent_to_sigma(live.schedule.end)
    )
