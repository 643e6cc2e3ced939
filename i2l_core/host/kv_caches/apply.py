"""A cache on CONDITIONING: every forward of that prompt, and no other, sees its keys and values.

A hook of the host carries a wrapper around the network's forward; the wrapper appends an `attn1_patch` behind those of
the MODEL. Conditionings with other hooks run as forwards of their own, so each side of CFG has its own cache, and time
ranges, areas, masks, Combine and all guiders work. The tensors lie in a small model that the host loads, moves and
frees with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...base_models import recognise
from ...base_models.flux2 import FLUX2
from ...errors import I2LError
from ...kv_caches.cache import KeysValues, KVCache
from ..live.network import network_of
from ..patch import weights_of
from .references import OwnReferences

Conditioning = list[list[Any]]

_KEY = "i2l_kv_cache"
_MODELS = "additional_models"  # in the values of a CONDITIONING: models that the host loads for it


def apply_caches(
    positive: Conditioning, negative: Conditioning, first: KVCache | None, second: KVCache | None
) -> tuple[Conditioning, Conditioning]:
    """Both sides of CFG, each with its cache; None: that side stays as it is. The inputs do not change.

    The same cache on both sides leaves them one batch. Each call counts once more, also with the same cache.
    """
    one = None if first is None else _held(first)
    two = one if second is first else None if second is None else _held(second)
    return _with(positive, one), _with(negative, two)


def apply_cache(conditioning: Conditioning, cache: KVCache) -> Conditioning:
    """`conditioning` with the cache, beside the hooks and caches that it has.

    Whether the MODEL suits it is checked when a sampling begins: I2LError then.
    """
    return _with(conditioning, _held(cache))


Held = tuple[comfy.hooks.HookGroup, ModelPatcher]


def _held(cache: KVCache) -> Held:
    """A hook of its own, and the model of the host that has the tensors."""
    tensors = _Tensors(cache)
    held = comfy.model_patcher.ModelPatcher(  # loaded whole: its tensors are no weights of Linears
        tensors,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    group = comfy.hooks.HookGroup()
    group.add(_CacheHook(_Wrapper(cache, tensors)))
    return group, held


def _with(conditioning: Conditioning, held: Held | None) -> Conditioning:
    if held is None:
        return conditioning
    group, model = held
    hooked = comfy.hooks.set_hooks_for_conditioning(conditioning, group, cache={})
    return [[text, {**values, _MODELS: [*values.get(_MODELS, []), model]}] for text, values in hooked]


class _CacheHook(comfy.hooks.TransformerOptionsHook):
    """Only for the prompts that it is on; looks at the MODEL before a sampling begins."""

    def __init__(self, wrapper: _Wrapper | None = None) -> None:  # the host copies hooks without arguments
        wrappers = {} if wrapper is None else {WrappersMP.DIFFUSION_MODEL: {_KEY: [wrapper]}}
        super().__init__({"wrappers": wrappers}, comfy.hooks.EnumHookScope.HookedOnly)
        self.wrapper = wrapper

    def clone(self) -> _CacheHook:
        copy = super().clone()
        copy.wrapper = self.wrapper
        return copy

    def add_hook_patches(self, model: Any, model_options: Any, target_dict: Any, registered: Any) -> bool:
        if self.wrapper is not None:
            check_model(model, self.wrapper.cache)
        return super().add_hook_patches(model, model_options, target_dict, registered)


def check_model(model: ModelPatcher, cache: KVCache) -> None:
    """Raise I2LError, with both names, unless the cache is for this MODEL: FLUX.2, of its heads and blocks."""
    who = cache.made_by or "the cache"
    network = network_of(model.model)
    if type(network).__name__ != FLUX2.network or not hasattr(network, "double_stream_modulation_img"):
        raise I2LError(
            f"{who} is for FLUX.2 klein 4B, but the MODEL is {_title(model)}; use it with FLUX.2 klein 4B"
        )
    heads = int(network.num_heads)  # type: ignore[arg-type]
    width = int(network.hidden_size) // heads  # type: ignore[arg-type]
    blocks = {"double": len(network.double_blocks), "single": len(network.single_blocks)}  # type: ignore[arg-type]
    fits = (heads, width) == (cache.heads, cache.head_dim)
    if not fits or any(cache.count(kind) > count for kind, count in blocks.items()):
        raise I2LError(
            f"{who} has {cache.heads} heads of {cache.head_dim} in {cache.count('double')} double and "
            f"{cache.count('single')} single blocks, but the MODEL is {_title(model)} with {heads} heads of {width} in "
            f"{blocks['double']} and {blocks['single']}; use the model that it was made for, FLUX.2 klein 4B"
        )


def _title(model: ModelPatcher) -> str:
    try:
        return recognise(weights_of(model)).title
    except I2LError:
        return type(model.model).__name__


class _Tensors(nn.Module):
    """The tensors of a cache as a model of the host: parameters, so that it counts and moves them."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.parts = nn.ParameterList(
            nn.Parameter(part, requires_grad=False) for pair in cache.blocks.values() for part in pair
        )
        self.places = {name: 2 * i for i, name in enumerate(cache.blocks)}

    def block(self, name: str) -> KeysValues | None:
        """(1, T, heads, head_dim) each, where they are now."""
        place = self.places.get(name)
        return None if place is None else (self.parts[place], self.parts[place + 1])


class _Wrapper:
    """Around the network's forward. The host calls `to` with its device and its type, before and after a sampling."""

    def __init__(self, cache: KVCache, tensors: _Tensors) -> None:
        self.cache, self._tensors = cache, tensors
        self._ready: dict[Any, KeysValues] = {}
        self._references = OwnReferences()

    def to(self, where: Any) -> _Wrapper:
        """The tensors are moved by the host as a model; what was converted for the last sampling is let go."""
        self._ready.clear()
        self._references.clear()
        return self

    def __call__(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        place = next((i for i, value in enumerate(args) if _are_options(value)), None)
        options = args[place] if place is not None else kwargs.get("transformer_options", {})
        patches = dict(options.get("patches", {}))
        patches["attn1_patch"] = [*patches.get("attn1_patch", []), _Patch(self._block)]
        options = {**options, "patches": patches}
        with self._references.swapped_in(patches["attn1_patch"]):
            if place is None:
                return executor(*args, **{**kwargs, "transformer_options": options})
            return executor(*args[:place], options, *args[place + 1 :], **kwargs)

    def _block(self, name: str, like: Tensor) -> KeysValues | None:
        """(1, heads, T, head_dim) each, in the type and on the device of `like`: converted once in a sampling."""
        pair = self._tensors.block(name)
        if pair is None:
            return None
        if pair[0].dtype == like.dtype and pair[0].device == like.device:
            return pair[0].transpose(1, 2), pair[1].transpose(1, 2)
        key = name, like.dtype, like.device
        if key not in self._ready:
            self._ready[key] = tuple(part.to(like.device, like.dtype).transpose(1, 2) for part in pair)  # type: ignore[assignment]
        return self._ready[key]


class _Patch:
    """Appends the cache in one forward: `attn1_patch` of the host's Flux, keys and values (B, heads, S, head_dim)
    after normalisation and before rotation."""

    def __init__(self, block: Callable[[str, Tensor], KeysValues | None]) -> None:
        self._block = block
        self._rotations: tuple[Tensor, int, int, Tensor] | None = (
            None  # of this forward: the same in every block
        )

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pe: Tensor | None = None,
        attn_mask: Tensor | None = None,
        extra_options: Any = None,
    ) -> dict[str, Any]:
        name = f"{extra_options['block_type']}_{extra_options['block_index']}"
        pair = self._block(name, k)
        if pair is None:
            return {}
        keys, values = (part.expand(len(k), -1, -1, -1) for part in pair)
        more = keys.shape[2]
        return {
            "k": torch.cat([k, keys], 2),
            "v": torch.cat([v, values], 2),
            "pe": None if pe is None else self._rotated(pe, k.shape[2], more),
            "attn_mask": None if attn_mask is None else _visible(attn_mask, more),
        }

    def _rotated(self, pe: Tensor, tokens: int, more: int) -> Tensor:
        """Rotations (B, 1, S, head_dim / 2, 2, 2) of the model's own tokens, and none for those of the cache."""
        if self._rotations is None or self._rotations[0] is not pe or self._rotations[1:3] != (tokens, more):
            same = torch.eye(2, dtype=pe.dtype, device=pe.device).expand(*pe.shape[:2], more, *pe.shape[3:])
            self._rotations = pe, tokens, more, torch.cat([pe[:, :, :tokens], same], 2)
        return self._rotations[3]


def _visible(mask: Tensor, more: int) -> Tensor:
    """A mask (..., S), true or 0 where a key is seen, for more keys that all see."""
    return F.pad(mask, (0, more), value=True if mask.dtype == torch.bool else 0.0)


def _are_options(value: Any) -> bool:
    """The host hands its options to the forward as a dict among the arguments."""
    return isinstance(value, dict) and ("sigmas" in value or "cond_or_uncond" in value or "patches" in value)
