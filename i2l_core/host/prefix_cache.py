"""The prefix cache of a network (HiDream-O1): keys and values of the prompt, kept between forwards.

The network ignores changed weights, so with another LoRA it would reuse stale keys and values.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ..base_models import architecture_of_network

_KEY = "i2l_prefix_cache"
_KEPT = 4  # sets of LoRAs whose keys and values are kept at once: two branches, before and after a change


def clear_around_runs(model: ModelPatcher) -> None:
    """Clear the prefix cache before and after every sampling of this patcher."""
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
        self._kept: OrderedDict[Hashable, dict[str, Any]] = OrderedDict()

    @contextmanager
    def of(self, network: nn.Module, acting: Hashable) -> Iterator[None]:
        """Within it `network` has the cache that belongs to `acting`. Other networks stay untouched."""
        architecture = architecture_of_network(network)
        empty = dict(architecture.prefix_cache) if architecture else {}
        if not empty:
            yield
            return
        own = {name: getattr(network, name) for name in empty}
        _set(network, self._kept.pop(acting, None) or copy.deepcopy(empty))
        try:
            yield
            self._kept[acting] = {name: getattr(network, name) for name in empty}
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        finally:
            _set(network, own)


def _set(network: nn.Module, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(network, name, value)
