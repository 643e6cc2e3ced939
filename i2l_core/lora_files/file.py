"""LoRA files: safetensors that ComfyUI's own loaders and other tools read, and theirs, read here.

A layer of a weight is two tensors, down (k, d_in) and up (d_out, k), named as `names` says. ComfyUI's key format
has one layer per weight of the host; that of diffusers / DiffSynth one per layer of theirs.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from ..base_models import Architecture, find_model
from ..errors import I2LError
from ..files.atomic import next_free_path, safe_join, write_new
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

__all__ = [
    "METADATA_KEY",
    "OtherKind",
    "from_state_dict",
    "load",
    "next_free_path",
    "safe_join",
    "save",
    "to_state_dict",
]

METADATA_KEY = "i2l"
FORMAT = "i2l-lora"
VERSION = 1

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
    Raises I2LError for a target of rows (call `lora.fuse_rows` first), and when the base model is not known
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
            raise I2LError(f"{target} covers only rows of its weight; fuse the LoRA before it is written")
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
    parts = _sort(list(tensors), source)
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


def load(path: str | Path, base_model: str = "") -> LoRA:
    """Read a LoRA file of any key format. `base_model`: what it is for, where names and sizes may not tell.

    Raises I2LError naming the file when it is damaged, not finite, no LoRA, or for another base model than it
    says itself.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = _read_about(file.metadata() or {}, path)
            _sort(file.keys(), path.name)  # what is no LoRA is not read
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise I2LError(
            f"{path.name} is not a whole safetensors file: {error}; download or save it again"
        ) from error
    said = about.pop("base_model", "")
    if base_model and said and said != base_model:
        raise I2LError(f"{path.name} is for {said}, not for {base_model}; choose auto or {said}")
    return from_state_dict(tensors, said or base_model, source=path.name, **about)


def save(
    lora: LoRA, path: str | Path, metadata: Mapping[str, str] | None = None, key_format: KeyFormat = "ComfyUI"
) -> Path:
    """Write a LoRA file at `path`, or under the next free number when that exists; return where it is.

    `metadata`: more entries for the file's header; they win over ours of the same name, except for "i2l".
    Raises I2LError when the LoRA has row targets or is not finite, or when the disk refuses. Then nothing was
    changed.
    """
    path = Path(path)
    lora.check_finite()
    tensors = to_state_dict(lora, key_format)
    header = _metadata(lora, path.stem) | dict(metadata or {}) | {METADATA_KEY: _about(lora)}
    wrong = sorted(
        str(key) for key, value in header.items() if not (isinstance(key, str) and isinstance(value, str))
    )
    if wrong:
        raise I2LError(f"the metadata of a LoRA file must be text, got other values for: {_some(wrong)}")
    try:
        return write_new(path, serialize(tensors, header))
    except OSError as error:
        raise I2LError(
            f"cannot save {path}: {error}. Nothing was changed; check the folder and its space"
        ) from error


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _sort(keys: Sequence[str], source: str) -> dict[Kind, dict[str, str]]:
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
        raise I2LError(f"{source}: {len(lonely)} layers lack their down or up tensor: {_some(lonely)}")
    if not downs:
        raise I2LError(f"{source} holds no LoRA layer")
    mixed = [name for name in downs if not are_pair(downs[name], ups[name])]
    if mixed:
        raise I2LError(
            f"{source}: {len(mixed)} layers mix the names of two formats (down of one, up of the other): "
            f"{_some(mixed)}; export it again"
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
        f"{source}: {len(keys)} of {total} tensors are no LoRA layers ({_some(keys)}); {expected}; {found}"
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


def _some(keys: Sequence[Any], count: int = 5) -> str:
    shown = ", ".join(str(key)[:100] for key in keys[:count])
    return f"{shown}, ..." if len(keys) > count else shown


def _about(lora: LoRA) -> str:
    model = find_model(lora.base_model)
    base_model = {"id": lora.base_model, "title": model.title if model else ""}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "base_model": base_model,
        "predictor": lora.predictor,
        "references": list(lora.references),
        "rank": lora.rank,
    }
    return json.dumps(about, ensure_ascii=False)


def _read_about(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What `_about` wrote, as arguments of `from_state_dict`; nothing for the file of another tool."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        about = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise I2LError(f"{path.name}: its {METADATA_KEY!r} metadata is damaged: {error}") from error
    kind = about.get("format") if isinstance(about, dict) else None
    if kind != FORMAT:
        raise I2LError(f"{path.name}: expected a LoRA file ({FORMAT}), got {str(kind)[:40]!r}")
    if about.get("version") != VERSION:
        found = str(about.get("version"))[:20]
        raise I2LError(
            f"{path.name}: LoRA file version {found} is not known (known: {VERSION}); update ComfyUI-i2L"
        )
    model, predictor, references = about.get("base_model"), about.get("predictor"), about.get("references")
    base_model = model.get("id") if isinstance(model, dict) else None
    texts = [base_model, predictor, *(references if isinstance(references, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise I2LError(
            f"{path.name}: its {METADATA_KEY!r} metadata is damaged: base model, predictor or references"
        )
    return {"base_model": base_model, "predictor": predictor, "references": references}


def _metadata(lora: LoRA, name: str) -> dict[str, str]:
    """What LoRA managers and trainers read.

    kohya's "ss_" keys, of which ComfyUI-Lora-Manager takes the base model as it stands, and modelspec 1.0.1
    (https://github.com/Stability-AI/ModelSpec).
    """
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    metadata = {
        "ss_output_name": name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.rank),  # alpha / dim is the 1 that the tensors are saved with
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": name,
        "modelspec.date": now.isoformat(),
    }
    model = find_model(lora.base_model)
    if model:
        metadata |= {
            "ss_base_model_version": model.manager_name,
            "modelspec.architecture": f"{model.modelspec_architecture}/lora",
            "modelspec.implementation": model.implementation,
        }
    return metadata
