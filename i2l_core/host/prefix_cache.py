"""HiDream-O1 keeps keys and values of its prompt between steps, runs and workflows, whatever its weights are.

`HiDreamO1Transformer._kv_cache_entries` is found again by prompt and size alone; nothing in ComfyUI 0.30 clears
it. With another LoRA on the same prompt the old keys and values would be used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

_KEY = "i2l_prefix_cache"
_KEPT = 4  # sets of LoRAs whose keys and values are kept at once: two branches, before and after a change


def clear_around_runs(model: ModelPatcher) -> None:
    """Make every sampling of this patcher start and leave without cached keys and values."""
    if not hasattr(model.model.diffusion_model, "clear_kv_cache"):
        return
    for moment in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        model.remove_callbacks_with_key(moment, _KEY)
        model.add_callback_with_key(moment, _KEY, _clear)


def _clear(model: ModelPatcher) -> None:
    model.model.diffusion_model.clear_kv_cache()


class PrefixCaches:
    """One cache for each set of LoRAs that acts during a run. The model's own is put back after each forward."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()

    @contextmanager
    def of(self, network: nn.Module, acting: Hashable) -> Iterator[None]:
        """Within it `network` has the cache that belongs to `acting`. Other networks stay untouched."""
        if not hasattr(network, "_kv_cache_entries"):
            yield
            return
        own = network._kv_cache_entries, network._visual_cache
        network._kv_cache_entries, network._visual_cache = self._kept.pop(acting, ([], None))
        try:
            yield
            self._kept[acting] = network._kv_cache_entries, network._visual_cache
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        finally:
            network._kv_cache_entries, network._visual_cache = own
