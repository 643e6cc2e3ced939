"""LoRA files: safetensors that ComfyUI's own loaders and other tools read.

A layer of the host weight W is two tensors, "diffusion_model.W.lora_down.weight" (k, d_in) and
"diffusion_model.W.lora_up.weight" (d_out, k), without alpha: loaders then apply up @ down as it is.
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

from .errors import I2LError
from .layouts import find_model
from .lora import LoRA, LowRank, Target
from .new_file import next_free_path, safe_join, write_new

__all__ = ["METADATA_KEY", "from_state_dict", "load", "next_free_path", "safe_join", "save", "to_state_dict"]

METADATA_KEY = "i2l"
FORMAT = "i2l-lora"
VERSION = 1

_PREFIX = "diffusion_model."
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight")
_ALPHA = ".alpha"
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "a convolution (LoCon) LoRA",
    ".diff": "full weight differences",
}


def to_state_dict(lora: LoRA) -> dict[str, Tensor]:
    """The tensors of a file: on the CPU, contiguous, each with its own storage, in the LoRA's dtype.

    Raises I2LError for a target of rows: call `lora.fuse_rows` first.
    """
    tensors = {}
    for target, layer in sorted(lora.layers.items()):
        if target.rows is not None:
            raise I2LError(f"{target} covers only rows of its weight; fuse the LoRA before it is written")
        tensors[f"{_PREFIX}{target.weight}{_DOWN[0]}"] = _own(layer.down)
        tensors[f"{_PREFIX}{target.weight}{_UP[0]}"] = _own(layer.up)
    return tensors


def from_state_dict(
    tensors: Mapping[str, Tensor],
    base_model: str = "",
    predictor: str = "",
    references: Sequence[str] = (),
    source: str = "the LoRA",
) -> LoRA:
    """The LoRA in these tensors. Alpha is folded into `up` (times alpha / rank, in fp32 or wider).

    Weights keep the names they have in the file, without "diffusion_model.". `source` says in errors what was
    read.
    Raises I2LError, naming up to five keys, for anything that is not a complete, finite, plain LoRA.
    """
    parts = {"down": {}, "up": {}, "alpha": {}}
    unknown = []
    for key, value in tensors.items():
        kind, weight = _kind_of(key)
        if not kind:
            unknown.append(key)
        elif weight in parts[kind]:
            raise I2LError(f"{source}: {weight} has more than one {kind} tensor")
        else:
            parts[kind][weight] = value
    _refuse_unknown(unknown, len(tensors), source)
    downs, ups, alphas = parts["down"], parts["up"], parts["alpha"]
    lonely = sorted((downs.keys() ^ ups.keys()) | (alphas.keys() - downs.keys()))
    if lonely:
        raise I2LError(f"{source}: {len(lonely)} layers lack their down or up tensor: {_some(lonely)}")
    if not downs:
        raise I2LError(f"{source} holds no LoRA layer")
    layers = {Target(w): _layer(w, downs[w], ups[w], alphas.get(w), source) for w in downs}
    return LoRA(layers, base_model, predictor, tuple(references))


def load(path: str | Path) -> LoRA:
    """Read a LoRA file. Raises I2LError naming the file when it is damaged, not finite or no LoRA."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = _read_about(file.metadata() or {}, path)
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise I2LError(
            f"{path.name} is not a whole safetensors file: {error}; download or save it again"
        ) from error
    return from_state_dict(tensors, source=path.name, **about)


def save(lora: LoRA, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a LoRA file at `path`, or under the next free number when that exists; return where it is.

    `metadata`: more entries for the file's header; they win over ours of the same name, except for "i2l".
    Raises I2LError when the LoRA has row targets or is not finite, or when the disk refuses. Then nothing was
    changed.
    """
    path = Path(path)
    lora.check_finite()
    tensors = to_state_dict(lora)
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


def _kind_of(key: Any) -> tuple[str, str]:
    """(down | up | alpha, weight) of a key, or two empty strings."""
    for kind, suffixes in (("down", _DOWN), ("up", _UP), ("alpha", (_ALPHA,))):
        for suffix in suffixes:
            if isinstance(key, str) and key.endswith(suffix):
                weight = key.removeprefix(_PREFIX).removesuffix(suffix)
                return (kind, weight) if weight else ("", "")
    return "", ""


def _refuse_unknown(keys: list[Any], total: int, source: str) -> None:
    if not keys:
        return
    kinds = sorted({kind for mark, kind in _OTHER_KINDS.items() if any(mark in str(key) for key in keys)})
    expected = f"expected only pairs of {_DOWN[0]} and {_UP[0]}"
    found = f"it holds {', '.join(kinds)}, which is not supported" if kinds else "it is of another kind"
    raise I2LError(
        f"{source}: {len(keys)} of {total} tensors are no LoRA layers ({_some(keys)}); {expected}; {found}"
    )


def _layer(weight: str, down: Any, up: Any, alpha: Any, source: str) -> LowRank:
    for tensor in (down, up):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise I2LError(f"{source}: {weight} holds {_type_of(tensor)}, expected floating point tensors")
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
            "modelspec.architecture": f"{model.architecture}/lora",
            "modelspec.implementation": model.implementation,
        }
    return metadata
