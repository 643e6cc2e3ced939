"""One sampling with live LoRAs: who its rows are, what acts on them at each step, and what that needs.

All that a run makes ends with it: hooks on the network, stacked LoRAs on the device, keys and values.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor, nn

from ...errors import I2LError
from ...grouped_lora import GroupedLoRA, stack
from ..prefix_cache import PrefixCaches
from .branches import Branch, Chunk, ChunkOfUuid, branches_of, chunks_of
from .hooks import ActiveLoRAs, Hooks, TokenMasks
from .image_tokens import ImageTokens
from .loras import LiveLoRA, LiveSet

_KEPT = 4  # stacks kept at once: two branches in forwards of their own, before and after a change

Group = tuple[tuple[int, float], ...]  # (number of a live LoRA, its strength), what acts on a group of rows
Plan = tuple[Group, ...]


class SamplingRun:
    """One sampling: who its rows are, the hooks, and the stacked LoRAs on the device."""

    def __init__(
        self, live: LiveSet, chunk_of: ChunkOfUuid, patcher: ModelPatcher | None, noise: Tensor
    ) -> None:
        self._live = live
        self._chunk_of = chunk_of
        self._branches: tuple[Branch | None, ...] = ()
        self._latent = noise.shape[-2:]
        self._windows = [_sigmas(one, patcher) for one in live.loras]
        curved = any(one.schedule.curve is not None for one in live.loras)
        self._percents = SigmaToPercent(patcher) if curved and patcher is not None else None
        self._stacks: OrderedDict[Any, dict[str, GroupedLoRA]] = OrderedDict()
        self._caches = PrefixCaches()
        self._hooks: dict[int, Hooks] = {}
        self._masks: dict[Any, TokenMasks] = {}

    def begin_cond_batch(self, conds: Sequence[Sequence[Mapping[str, Any]] | None]) -> None:
        """The lists of conds that the next forwards are chunks of."""
        self._branches = branches_of(conds, self._chunk_of)

    def forward(
        self,
        model: BaseModel,
        options: Mapping[str, Any],
        x: Tensor,
        arguments: Mapping[str, Any],
        call: Callable[[], Tensor],
    ) -> Tensor:
        chunks = chunks_of(options, self._chunk_of, self._branches)
        plan, factors = self._plan(chunks, options.get("sigmas"))
        network = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
        with self._caches.of(network, (plan, tuple(factors.items()))):
            first, last = _span(plan)
            if first == last:
                return call()
            groups = plan[first:last]
            if len(set(groups)) == 1:
                groups = groups[:1]
            stacks = self._stacked(groups, x.device, model.get_dtype_inference())
            masks = self._token_masks(network, x, arguments, len(chunks))
            rows = x.shape[0] // len(chunks)
            factors = {number: factor for number, factor in factors.items() if factor != 1}
            acting = ActiveLoRAs(stacks, slice(first * rows, last * rows), x.shape[0], masks, factors)
            with self._hooks_on(network).acting(acting), _uncompiled():
                return call()

    def close(self) -> None:
        """Leave nothing behind: no hook on the network, nothing on the device."""
        for hooks in self._hooks.values():
            hooks.remove()
        self._hooks.clear()
        self._stacks.clear()
        self._masks.clear()

    def _plan(self, chunks: tuple[Chunk, ...], sigmas: Tensor | None) -> tuple[Plan, dict[int, float]]:
        """What acts on each chunk, and by which factors those with a curve act now."""
        loras = self._live.loras
        sigma = 0.0
        if sigmas is not None and not all(live.schedule.is_constant for live in loras):
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
        key = groups, device
        if key in self._stacks:
            self._stacks.move_to_end(key)
            return self._stacks[key]
        layers = self._live.layers
        found = {}
        for target in self._live.targets:
            parts = [[(j, layers[j][target], s) for j, s in group if target in layers[j]] for group in groups]
            products = stack(parts, device, dtype)
            if products is not None:
                found[target.weight] = products
        self._stacks[key] = found
        if len(self._stacks) > _KEPT:
            self._stacks.popitem(last=False)
        return found

    def _token_masks(
        self, network: nn.Module, x: Tensor, arguments: Mapping[str, Any], chunks: int
    ) -> TokenMasks | None:
        masks = {number: live.mask for number, live in enumerate(self._live.loras) if live.mask is not None}
        if not masks:
            return None
        if x.shape[-2:] != self._latent:
            raise I2LError(
                "a LoRA with a mask cannot be combined with conditionings for an area of the picture; "
                "use a masked conditioning (Set Mask) instead of an area"
            )
        tokens, rows = ImageTokens.read(network, x, arguments), x.shape[0] // chunks
        return self._masks.setdefault((tokens, rows), TokenMasks(tokens, masks, rows))

    def _hooks_on(self, network: nn.Module) -> Hooks:
        if id(network) not in self._hooks:
            self._hooks[id(network)] = Hooks(network, self._live.targets)
        return self._hooks[id(network)]


def _span(plan: Plan) -> tuple[int, int]:
    """First and last + 1 chunk on which anything acts; equal when nothing does."""
    acting = [number for number, group in enumerate(plan) if group]
    return (acting[0], acting[-1] + 1) if acting else (0, 0)


class SigmaToPercent:
    """How much of the sampling is over at a sigma, 0..1: the inverse of the host's percent_to_sigma."""

    _STEPS = 1024

    def __init__(self, patcher: ModelPatcher) -> None:
        sampling: Any = patcher.get_model_object("model_sampling")
        self._rising = [-float(sampling.percent_to_sigma(i / self._STEPS)) for i in range(self._STEPS + 1)]

    def at(self, sigma: float) -> float:
        """0..1; between the places that are known by a straight line."""
        after = bisect.bisect_left(self._rising, -sigma)
        if after == 0 or after > self._STEPS:
            return min(after, self._STEPS) / self._STEPS
        low, high = self._rising[after - 1 : after + 1]
        return (after - 1 + (-sigma - low) / (high - low)) / self._STEPS


def _sigmas(live: LiveLoRA, patcher: ModelPatcher | None) -> tuple[float, float]:
    """Between which sigmas a LoRA acts, by the sampling of the model as it is now."""
    schedule = live.schedule
    if schedule.is_constant or patcher is None:
        return math.inf, -math.inf
    sampling: Any = patcher.get_model_object("model_sampling")
    return float(sampling.percent_to_sigma(schedule.start)), float(sampling.percent_to_sigma(schedule.end))


def is_compiled(model: ModelPatcher) -> bool:
    """Whether ComfyUI's Torch Compile Model node, or an object patch, has torch.compile run this model."""
    if "torch._dynamo" not in sys.modules:
        return False
    compiled = torch._dynamo.OptimizedModule  # type: ignore[attr-defined]
    wrapped = model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    return bool(wrapped) or any(isinstance(patch, compiled) for patch in model.object_patches.values())


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Hooks come and go, which compiled code does not notice, so it is passed over while they act."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
