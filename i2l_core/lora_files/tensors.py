"""The tensors of a LoRA file, and the LoRA that they stand for.

A layer of a weight is two tensors, down (k, d_in) and up (d_out, k), named as `names` says. ComfyUI's key format
has one layer per weight of the host; that of diffusers / DiffSynth one per layer of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base_models import Architecture
from ..checks import listed
from ..errors import I2LError
from ..lora import LoRA, LowRank, Target
from .names import (
    KeyFormat,
    Kind,
    architecture_named,
    are_pair,
    find,
    keys_of,
    recognise_lora,
    split_key,
    without_prefix,
    written_layers,
)

_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "a convolution (LoCon) LoRA",
    ".diff": "full weight differences",
    "lora_embedding": "a LoRA of embeddings",
}


class OtherKind(I2LError):
    """Tensors that are no plain LoRA: of another kind, or of nothing known."""


def to_state_dict(lora: LoRA, key_format: KeyFormat = "ComfyUI") -> dict[str, Tensor]:
    """The tensors of a file: on the CPU, contiguous, each with its own storage, in the LoRA's dtype.

    Without alpha, which every loader takes for `alpha = rank`; but diffusers takes one rank for all layers, so
    its key format says alpha where ranks differ.
    Raises I2LError for a target of rows (call `lora.to_whole_weights` first), and when the base model is not known
    whose names the key format needs.
    """
    architecture = architecture_named(lora.base_model) or _architecture_by_weights(lora)
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


def from_state_dict(
    tensors: Mapping[str, Tensor],
    base_model: str = "",
    predictor: str = "",
    references: Sequence[str] = (),
    source: str = "the LoRA",
    architecture: Architecture | None = None,
) -> LoRA:
    """The LoRA in these tensors, of any spelling in `lora_names`; targets are the host's.

    Alpha is folded into `up` (times alpha / rank, in fp32 or wider). The base model is the one given, else told
    from names and sizes, else empty. `architecture`: of the model it is meant for, where that is known. A layer that
    no table knows keeps its name, for whoever applies it to refuse. `source` says in errors what was read.
    Raises I2LError, naming up to five keys, for anything that is not a complete, finite, plain LoRA, and when
    names and sizes fit more than one kind of model.
    """
    parts = check_keys(list(tensors), source)
    downs, ups, alphas = parts["down"], parts["up"], parts["alpha"]
    read = {
        name: _layer(
            name, tensors[downs[name]], tensors[ups[name]], tensors.get(alphas.get(name, "")), source
        )
        for name in downs
    }
    architecture = architecture_named(base_model) or architecture
    if not base_model or architecture is None:
        architecture, found = _recognise(read, architecture, source)
        base_model = base_model or found
    layers: dict[Target, LowRank] = {}
    for name, layer in read.items():
        named = find(architecture, name) if architecture else None
        target, layer = named.read(layer) if named else (Target(without_prefix(name)), layer)
        if target in layers:
            raise I2LError(f"{source}: {target} comes under two names, one of them {name}")
        layers[target] = layer
    return LoRA(layers, base_model, predictor, tuple(references))


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def check_keys(keys: Sequence[str], source: str) -> dict[Kind, dict[str, str]]:
    """Kind of tensor -> layer name -> key. Raises I2LError when the keys are not those of a plain LoRA."""
    parts: dict[Kind, dict[str, str]] = {"down": {}, "up": {}, "alpha": {}}
    unknown = []
    for key in keys:
        found = split_key(key)
        if found is None:
            unknown.append(key)
            continue
        kind, name = found
        if name in parts[kind]:
            raise I2LError(f"{source}: {name} has more than one {kind} tensor")
        parts[kind][name] = key
    _refuse_unknown(unknown, len(keys), source)
    downs, ups, alphas = parts["down"], parts["up"], parts["alpha"]
    lonely = sorted((downs.keys() ^ ups.keys()) | (alphas.keys() - downs.keys()))
    if lonely:
        raise I2LError(f"{source}: {len(lonely)} layers lack their down or up tensor: {listed(lonely)}")
    if not downs:
        raise I2LError(f"{source} holds no LoRA layer")
    mixed = [name for name in downs if not are_pair(downs[name], ups[name])]
    if mixed:
        raise I2LError(
            f"{source}: {len(mixed)} layers mix the names of two formats (down of one, up of the other): "
            f"{listed(mixed)}; export it again"
        )
    return parts


def _recognise(
    layers: Mapping[str, LowRank], architecture: Architecture | None, source: str
) -> tuple[Architecture | None, str]:
    """(the table of the names, the id of the base model or ""); `architecture` decides where several fit."""
    found, model = recognise_lora({name: (layer.d_out, layer.d_in) for name, layer in layers.items()})
    if architecture is not None:
        return architecture, model.id if model and model.architecture is architecture else ""
    if len(found) > 1:
        raise I2LError(
            f"{source}: its names and sizes fit the {' and the '.join(one.title for one in found)} alike; "
            "choose the base model that it is for"
        )
    return (found[0] if found else None), model.id if model else ""


def _architecture_by_weights(lora: LoRA) -> Architecture | None:
    names = {target.weight: (layer.d_out, layer.d_in) for target, layer in lora.layers.items()}
    found, _ = recognise_lora(names)
    return found[0] if len(found) == 1 else None


def _refuse_unknown(keys: list[str], total: int, source: str) -> None:
    if not keys:
        return
    kinds = sorted({kind for mark, kind in _OTHER_KINDS.items() if any(mark in str(key) for key in keys)})
    expected = "expected pairs of .lora_down.weight and .lora_up.weight"
    found = f"it holds {', '.join(kinds)}, which is not supported" if kinds else "it is of another kind"
    raise OtherKind(
        f"{source}: {len(keys)} of {total} tensors are no LoRA layers ({listed(map(str, keys))}); {expected}; {found}"
    )


def _layer(weight: str, down: Any, up: Any, alpha: Any, source: str) -> LowRank:
    for tensor in (down, up):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise I2LError(f"{source}: {weight} holds {_type_of(tensor)}, expected floating point tensors")
        if tensor.ndim > 2:
            raise I2LError(
                f"{source}: {weight} is {_type_of(tensor)}, of a convolution; only LoRAs of linear layers are "
                "supported"
            )
    dtype = torch.promote_types(down.dtype, up.dtype)
    try:
        layer = LowRank(down.to(dtype), up.to(dtype))
    except I2LError as error:
        raise I2LError(f"{source}: {weight}: {error}") from error
    if not layer.is_finite():
        raise I2LError(f"{source}: {weight} holds NaN or infinite values")
    scale = 1.0 if alpha is None else _number(weight, alpha, source) / layer.rank
    if scale == 1.0:
        return layer
    return layer.to(dtype=torch.promote_types(dtype, torch.float32)).scaled(scale)


def _number(weight: str, alpha: Any, source: str) -> float:
    value = float(alpha) if isinstance(alpha, Tensor) and alpha.numel() == 1 else math.nan
    if not math.isfinite(value):
        raise I2LError(f"{source}: the alpha of {weight} must be one finite number, got {_type_of(alpha)}")
    return value


def _type_of(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
