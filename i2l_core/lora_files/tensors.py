"""The tensors of a LoRA file, and the LoRA that they stand for.

A layer of a weight is two tensors, down (k, d_in) and up (d_out, k), named as `names` says. ComfyUI's key format
has one layer per weight of the host; that of diffusers / DiffSynth one per layer of theirs.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base_models import Architecture, find_model, other_model
from ..checks import listed
from ..errors import I2LError
from ..lora import LoRA, LowRank, Target
from .keys import (
    KeyFormat,
    TensorKind,
    are_pair,
    host_name,
    keys_of,
    left_out,
    not_of_the_model,
    other_kind,
    split_key,
)
from .names import (
    architecture_named,
    architecture_of_weights,
    find,
    misfits,
    misshapen,
    recognise_lora,
    written_layers,
)

Scale = Callable[[str, int], float]
"""(name, rank) of a layer without a tensor for alpha -> the factor on up @ down."""

_BY_COMFYUI = (
    "only ComfyUI's own loader applies it "
    "(Load LoRA for a file, Apply Predicted LoRA in mode merged for a LORA_MODEL)"
)


class OtherKind(I2LError):
    """Tensors that are no plain LoRA: of another kind, or of nothing known."""


def to_state_dict(lora: LoRA, key_format: KeyFormat = "ComfyUI") -> dict[str, Tensor]:
    """The tensors of a file: on the CPU, contiguous, each with its own storage, in the LoRA's dtype.

    Without alpha, which every loader takes for `alpha = rank`; but diffusers takes one rank for all layers, so
    its key format says alpha where ranks differ.
    Raises I2LError for a target of rows (call `lora.to_whole_weights` first), and when the base model is not known
    whose names the key format needs.
    """
    architecture = _architecture_of(lora)
    if key_format != "ComfyUI" and architecture is None:
        raise I2LError(
            f"the names that {key_format} has for these layers are not known, as the LoRA's base model is not; "
            "save it in ComfyUI's layout"
        )
    layers: dict[str, LowRank] = {}
    for target, layer in sorted(lora.layers.items()):
        if target.rows is not None:
            raise I2LError(
                f"{target} covers only rows of its weight; a file needs whole weights (in_whole_weights)"
            )
        layers.update(written_layers(target.weight, layer, key_format, architecture))
    with_alpha = key_format == "diffusers" and len({layer.rank for layer in layers.values()}) > 1
    tensors = {}
    for name, layer in layers.items():
        down, up, alpha = keys_of(key_format, name)
        tensors[down], tensors[up] = _own(layer.down), _own(layer.up)
        if with_alpha:
            tensors[alpha] = torch.tensor(float(layer.rank))
    return tensors


def unread_by_comfyui(lora: LoRA, key_format: KeyFormat) -> int:
    """How many layers in a file of this key format have names that ComfyUI's own loader does not read."""
    architecture = _architecture_of(lora)
    if key_format == "ComfyUI" or architecture is None:
        return 0
    return sum(
        name.startswith(architecture.unread)
        for target, layer in lora.layers.items()
        for name, _ in written_layers(target.weight, layer, key_format, architecture)
    )


def _architecture_of(lora: LoRA) -> Architecture | None:
    sizes = {target.weight: (layer.d_out, layer.d_in) for target, layer in lora.layers.items()}
    return architecture_named(lora.base_model) or architecture_of_weights(sizes)


def from_state_dict(
    tensors: Mapping[str, Tensor],
    base_model: str = "",
    predictor: str = "",
    references: Sequence[str] = (),
    source: str = "the LoRA",
    architecture: Architecture | None = None,
    scale: Scale | None = None,
) -> LoRA:
    """The LoRA in these tensors, of any spelling in `keys` and `names`; targets are the host's.

    Alpha is folded into `up` (times alpha / rank, in fp32 or wider); `scale` says the factor for layers without a
    tensor for alpha. 8 bit floats become bfloat16, which holds them exactly. The base model is the one given, else told
    from names and sizes, else empty. `architecture`: of the model it is meant for, where that is known; a layer that it
    has not keeps its name then, for whoever applies it to refuse. Layers of text encoders, embeddings, and layers that
    the host has not are left out and counted. `source` says in errors what was read.
    Raises I2LError, naming up to five keys, for anything that is not a complete, finite, plain LoRA, when names and
    sizes fit more than one kind of model, and when only some of the names are of a model that is known.
    """
    keys = check_keys(list(tensors), source)
    read = {
        name: _layer(
            name, tensors[down], tensors[keys.up[name]], tensors.get(keys.alpha.get(name, "")), source, scale
        )
        for name, down in keys.down.items()
    }
    architecture = architecture_named(base_model) or architecture
    if not base_model or architecture is None:
        architecture, found = _recognise(_sizes(read), architecture, source)
        base_model = base_model or found
    elsewhere = collections.Counter(keys.left_out)
    layers: dict[Target, LowRank] = {}
    for name, layer in read.items():
        named = find(architecture, name) if architecture else None
        if named is not None and named.absent:
            elsewhere["layers that ComfyUI's model has not"] += 1
            continue
        try:
            target, layer = named.read(layer) if named else (Target(host_name(name)), layer)
        except I2LError as error:
            raise I2LError(f"{source}: {name}: {error}") from error
        if target in layers:
            raise I2LError(f"{source}: {target} comes under two names, one of them {name}")
        layers[target] = layer
    if not layers:
        raise OtherKind(f"{source} holds no layer of the diffusion model, only {_amounts(elsewhere)}")
    return LoRA(layers, base_model, predictor, tuple(references), elsewhere)


def check_is_for(tensors: Mapping[str, Tensor], base_model: str, source: str) -> None:
    """Raise I2LError naming up to five layers when the base model has not all of the LoRA's layers in their sizes."""
    model = find_model(base_model)
    if model is None:
        return
    keys = check_keys(list(tensors), source)
    sizes = {
        name: (tensors[keys.up[name]].shape[0], tensors[down].shape[1])
        for name, down in keys.down.items()
        if min(tensors[keys.up[name]].ndim, tensors[down].ndim) > 1  # others are refused as no matrices
    }
    if wrong := misfits(model, sizes):
        raise I2LError(
            f"{source} is not for {model.title} ({model.id}), {len(wrong)} of its {len(sizes)} layers do not fit: "
            f"{listed(wrong)}; set base_model to auto"
        )


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class LoRAKeys:
    """The keys of a LoRA's tensors by the name of their layer, and how much is not of the diffusion model."""

    down: Mapping[str, str]
    up: Mapping[str, str]
    alpha: Mapping[str, str]
    left_out: Mapping[str, int]


def check_keys(keys: Sequence[str], source: str) -> LoRAKeys:
    """Sort the keys of a file. Raises I2LError when they are not those of a plain LoRA of a diffusion model."""
    parts: dict[TensorKind, dict[str, str]] = {"down": {}, "up": {}, "alpha": {}}
    unknown: list[str] = []
    for key in keys:
        found = split_key(key)
        if not_of_the_model(key):
            continue
        if found is None:
            unknown.append(key)
        else:
            kind, name = found
            if name in parts[kind]:
                raise I2LError(f"{source}: {name} has more than one {kind} tensor; export one adapter alone")
            parts[kind][name] = key
    _refuse_unknown(unknown, len(keys), source)
    elsewhere = left_out(keys)
    downs, ups, alphas = parts["down"], parts["up"], parts["alpha"]
    lonely = sorted((downs.keys() ^ ups.keys()) | (alphas.keys() - downs.keys()))
    if lonely:
        raise I2LError(
            f"{source}: {len(lonely)} layers lack their down or up tensor: {listed(lonely)}; export it again"
        )
    if not downs:
        only = f", only {_amounts(elsewhere)}: ComfyUI's Load LoRA applies those" if elsewhere else ""
        raise I2LError(f"{source} holds no LoRA layer{' of a diffusion model' if elsewhere else ''}{only}")
    mixed = [name for name in downs if not are_pair(downs[name], ups[name])]
    if mixed:
        raise I2LError(
            f"{source}: {len(mixed)} layers mix the names of two formats (down of one, up of the other): "
            f"{listed(mixed)}; export it again"
        )
    return LoRAKeys(downs, ups, alphas, elsewhere)


def _amounts(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{what} ({count})" for what, count in counts.items())


def _sizes(layers: Mapping[str, LowRank]) -> dict[str, tuple[int, int]]:
    return {name: (layer.d_out, layer.d_in) for name, layer in layers.items()}


def _recognise(
    sizes: Mapping[str, tuple[int, int]], architecture: Architecture | None, source: str
) -> tuple[Architecture | None, str]:
    """(the architecture of the names, the id of the base model or ""); a given `architecture` decides."""
    found = recognise_lora(sizes)
    if architecture is not None:
        models = [model for model in found.models if model.architecture is architecture]
        return architecture, models[0].id if len(models) == 1 else ""
    if found.nearest is not None:
        other = other_model(sizes)
        made_for = f"it is for {other.title}, which is not supported" if other else "it is for another model"
        if found.strange:
            what = f"{len(found.strange)} of its {len(sizes)} layers ({listed(found.strange)}) are not"
            made_for += "" if other else ", or a converter broke the names"
        else:
            wrong = misshapen(found.nearest, sizes)
            what = f"the sizes of {len(wrong)} of its {len(sizes)} layers ({listed(wrong)}) are not"
        raise OtherKind(f"{source}: {what} of the {found.nearest.title}; {made_for}; {_BY_COMFYUI}")
    titles = " and the ".join(one.title for one in found.architectures)
    if len(found.architectures) > 1 and not found.models:
        raise OtherKind(
            f"{source}: its names are of the {titles} alike, but its sizes of no model that is supported; {_BY_COMFYUI}"
        )
    if len(found.architectures) > 1:
        raise I2LError(
            f"{source}: its names and sizes fit the {titles} alike; choose the base model that it is for"
        )
    return (found.architectures[0] if found.architectures else None), found.model.id if found.model else ""


def _refuse_unknown(keys: list[str], total: int, source: str) -> None:
    if not keys:
        return
    kinds = sorted({kind for key in keys if (kind := other_kind(key))})
    holds = (
        f"it holds {', '.join(kinds)}" if kinds else "expected pairs of .lora_down.weight and .lora_up.weight"
    )
    raise OtherKind(
        f"{source}: {len(keys)} of {total} tensors are not LoRA layers ({listed(map(str, keys))}): {holds}, and "
        f"{_BY_COMFYUI}"
    )


def _layer(name: str, down: Any, up: Any, alpha: Any, source: str, scale: Scale | None) -> LowRank:
    for tensor in (down, up):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not _has_values(tensor):
            raise I2LError(
                f"{source}: {name} holds {_type_of(tensor)}, expected floating point tensors; export it again"
            )
        if tensor.ndim > 2:
            raise I2LError(
                f"{source}: {name} is {_type_of(tensor)}, of a convolution; only LoRAs of linear layers are "
                "supported"
            )
    try:
        down, up = _without_8_bit(down), _without_8_bit(up)
    except RuntimeError as error:  # float4 in pairs, which PyTorch stores and cannot convert
        raise I2LError(
            f"{source}: {name} is {_type_of(down)}, which PyTorch cannot convert; export it in bfloat16"
        ) from error
    dtype = torch.promote_types(down.dtype, up.dtype)
    try:
        layer = LowRank(down.to(dtype), up.to(dtype))
    except I2LError as error:
        raise I2LError(f"{source}: {name}: {error}") from error
    if alpha is not None:
        factor = _number(name, alpha, source) / layer.rank
    else:
        factor = scale(name, layer.rank) if scale else 1.0
    scaled = layer
    if factor != 1.0:
        scaled = layer.to(dtype=torch.promote_types(dtype, torch.float32)).scaled(factor)
    if not scaled.is_finite():  # one look at the values for both
        if layer.is_finite():
            raise I2LError(
                f"{source}: the alpha of {name}, {factor * layer.rank:.3g}, makes its values infinite; export it again"
            )
        raise I2LError(f"{source}: {name} holds NaN or infinite values; export it again")
    return scaled


def _has_values(tensor: Tensor) -> bool:
    """Whether it is stored as a plain array: not sparse, and not on the device "meta"."""
    return tensor.layout is torch.strided and not tensor.is_meta


def _without_8_bit(tensor: Tensor) -> Tensor:
    """8 bit floats, which torch can only convert, as bfloat16: each of their values is one of its."""
    return tensor.bfloat16() if tensor.dtype.itemsize == 1 else tensor


def _number(weight: str, alpha: Any, source: str) -> float:
    value = math.nan
    if isinstance(alpha, Tensor) and alpha.numel() == 1 and _has_values(alpha) and not alpha.is_complex():
        with contextlib.suppress(RuntimeError):  # float4
            value = float(alpha)
    if not math.isfinite(value):
        raise I2LError(
            f"{source}: the alpha of {weight} must be one finite number, got {_type_of(alpha)}; export it again"
        )
    return value


def _type_of(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
