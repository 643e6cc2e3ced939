"""What a file or folder is and what to do with it, from its header alone: no value is read, nothing is run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .base_models import MODELS, find_model
from .checks import shown
from .encoders import DINOV3, KINDS, MODEL_ID, SIGLIP2, PooledEncoder
from .encoders import recognise as recognise_encoder
from .errors import I2LError
from .files.kinds import describe_bytes, describe_tensors
from .files.safetensors import check_shapes, shapes_and_dtypes
from .lora_files.names import recognise_lora, split_key
from .predictors.query import file as checkpoint
from .predictors.template.read import PROGRAM, read_template, weight_path
from .predictors.v1 import kinds as v1_kinds

_INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


@dataclass(frozen=True)
class Group:
    """Tensors of one shape and type whose names differ in numbers alone, each shown as *."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it
    count: int


@dataclass(frozen=True)
class Inspection:
    """`verdict`: what it is; `advice`: what to do with it; both one line. The rest is empty for no safetensors."""

    verdict: str
    advice: str
    groups: tuple[Group, ...] = ()
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Header:
    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


Found = tuple[str, str]  # verdict, advice


def inspect_path(path: Path) -> Inspection:
    """Raises I2LError when there is nothing, or nothing that can be read. Anything else gets a verdict."""
    if path.is_dir():
        return Inspection(*_folder(path))
    try:
        with safe_open(path, framework="np") as file:  # maps nothing, so a file may be larger than the memory
            shapes, dtypes = shapes_and_dtypes(file)
            header = _Header(path, shapes, dtypes, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        said = describe_bytes(path, error)
        if not path.is_file():
            raise I2LError(f"{path}: {said}") from error
        return Inspection(*_split(said))
    kinds = Counter((_INDEX.sub("*", name), shapes[name], dtypes[name]) for name in shapes)
    groups = tuple(Group(*kind, count) for kind, count in kinds.items())
    found = next(filter(None, (judge(header) for judge in _JUDGES)), None)
    if found is None:
        found = _split(describe_tensors(header.shapes, header.metadata))
    return Inspection(*found, groups, header.metadata)


def _folder(path: Path) -> Found:
    """A Diffusion Template: its program is read as text."""
    template = read_template(path, [path])
    advice = (
        f"put the folder into models/i2l and load it with Load i2L Predictor; its program, {PROGRAM}, runs only where "
        "that is allowed (docs/templates.md)"
    )
    try:
        for name in template.weights or ():
            weight_path(template, name)
    except I2LError as error:
        return f"a Diffusion Template that cannot be used: {error}", "get what is missing"
    return f"a {template.describe()}", advice


def _predictor(header: _Header) -> Found | None:
    """A predictor with metadata."""
    said = header.metadata.get(checkpoint.METADATA_KEY, "")
    if checkpoint.FORMAT not in said:
        return None
    try:
        config, encoder, meta = checkpoint.check_header(header.path)
    except I2LError as error:
        return (
            f"a predictor of the query family that cannot be used: {_reason(header, error)}",
            "get it again",
        )
    return (
        f"an i2L predictor of the query family for {_title(meta['base_model']['id'])}: rank {config.rank}, "
        f"{len(config.layers)} layers, with its own encoder ({encoder.kind}, width {encoder.token_dim})",
        _LOAD,
    )


def _version_1(header: _Header) -> Found | None:
    if v1_kinds.kind_of(header.shapes) is None:
        return None
    try:
        config = v1_kinds.recognise(header.shapes)
    except I2LError as error:
        return f"an i2L predictor of version 1 that cannot be used: {error}", "download it again"
    needs = f"it needs {' and '.join(KINDS[kind].file for kind in (SIGLIP2, DINOV3))} of {MODEL_ID}"
    reads = ""
    if config.residual:
        side = f" of {config.residual.side}x{config.residual.side}" if config.residual.side else ""
        reads = (
            f", reads {config.residual.length} hidden states of Qwen-Image's text encoder per picture{side}"
        )
        needs += ", and Qwen-Image's CLIP in ComfyUI"
    return (
        f"{config.title}, an i2L predictor of version 1 for {_title(config.base_model.id)}: rank {config.rank} per "
        f"picture, {len(config.adapted_layers)} layers, embeddings of width {config.token_dim}{reads}",
        f"{_LOAD}; {needs}",
    )


def _encoder(header: _Header) -> Found | None:
    config = recognise_encoder(header.shapes)
    if config is None:
        return None
    try:
        check_shapes(header.shapes, PooledEncoder(config, device="meta").file_shapes(), f"of {config}")
    except I2LError as error:
        return f"an image encoder of i2L version 1 that cannot be used: {error}", "download it again"
    place = f"models/clip_vision/{Path(KINDS[config.kind].file).parent}"
    return f"an image encoder of i2L version 1: {config}", f"put it into {place}"


def _lora(header: _Header) -> Found | None:
    """Only a plain one; other kinds are named by `describe_tensors`."""
    parts: dict[tuple[str, str], tuple[int, ...]] = {}
    for key, shape in header.shapes.items():
        found = split_key(key)
        if found is None:
            return None
        parts[found] = shape
    downs = {name: shape for (kind, name), shape in parts.items() if kind == "down" and len(shape) == 2}
    ups = {name: parts.get(("up", name), ()) for name in downs}
    if not downs or any(len(shape) != 2 for shape in ups.values()):
        return None
    architectures, model = recognise_lora({name: (ups[name][0], downs[name][1]) for name in downs})
    made_for = (
        _title(model.id) if model else " or ".join(f"a model of the {one.title}" for one in architectures)
    )
    ranks = sorted({shape[0] for shape in downs.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    advice = "put it into models/loras; any LoRA loader applies it"
    if model and model.id == "qwen-image":
        advice += ". Qwen-Image-i2L-Bias is such a file: use it beside the LoRAs of Coarse and Fine"
    return f"a LoRA for {made_for or 'an unknown base model'}: {rank}, {len(downs)} layers", advice


def _diffusion_model(header: _Header) -> Found | None:
    for prefix in _MODEL_PREFIXES:
        weights = {
            name.removeprefix(prefix): shape
            for name, shape in header.shapes.items()
            if name.startswith(prefix)
        }
        model = next((model for model in MODELS if model.matches(weights)), None)
        if model:
            place = "checkpoints" if prefix == _MODEL_PREFIXES[0] else "diffusion_models"
            return (
                f"the diffusion model {_title(model.id)}",
                f"put it into models/{place}; LoRAs are made for it",
            )
    return None


_JUDGES: tuple[Callable[[_Header], Found | None], ...] = (
    _predictor,
    _version_1,
    _encoder,
    _lora,
    _diffusion_model,
)
_LOAD = "put it into models/i2l and load it with Load i2L Predictor"


def _title(id: str) -> str:
    model = find_model(id)
    return f"{model.title} ({id})" if model else f"a base model this version does not know ({shown(id)})"


def _reason(header: _Header, error: I2LError) -> str:
    return str(error).removeprefix(f"{header.path.name}: ")


def _split(said: str) -> Found:
    """ "it is X; do Y" as a verdict and an advice"""
    what, _, advice = said.partition("; ")
    return what.removeprefix("it is "), advice or "nothing here can use it"
