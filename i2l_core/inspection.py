"""What a file or folder is and what to do with it, from its header alone: no value is read, nothing is run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .checks import shown
from .encoders import DINOV3, KINDS, MODEL_ID, SIGLIP2, PooledEncoder
from .encoders import recognise as recognise_encoder
from .errors import I2LError
from .layouts import MODELS, BaseModel, find_model
from .predictors import checkpoint, v1_kinds
from .predictors.identify import describe_bytes, describe_tensors
from .predictors.strict import check_shapes, shapes_and_dtypes

_INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_DOWN = re.compile(r"(?:diffusion_model\.|transformer\.)?(.+)\.lora_(?:A|down)(?:\.default)?\.weight")
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
        with safe_open(path, framework="pt") as file:
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
    raise I2LError(f"{path}: it is a folder; inspect the files in it")


def _predictor(header: _Header) -> Found | None:
    """A predictor with metadata."""
    said = header.metadata.get(checkpoint.METADATA_KEY, "")
    if checkpoint.FORMAT not in said:
        return None
    try:
        config, encoder, meta = checkpoint.check_header(header.path)
    except I2LError as error:
        return f"a predictor of the query family that cannot be used: {_reason(header, error)}", "get it again"
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
        reads = f", reads {config.residual.length} hidden states of Qwen-Image's text encoder per picture{side}"
        needs += ", and Qwen-Image's CLIP in ComfyUI"
    return (
        f"{config.title}, an i2L predictor of version 1 for {_title(config.base_model.id)}: rank {config.rank} per "
        f"picture, {len(config.slots)} layers, embeddings of width {config.token_dim}{reads}",
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
    return f"an image encoder of i2L version 1: {config}", "put it where predictors of version 1 look for it"


def _lora(header: _Header) -> Found | None:
    """Only what every LoRA loader calls a plain one; other kinds are named by `describe_tensors`."""
    downs = {found[1]: header.shapes[name] for name in header.shapes if (found := _DOWN.fullmatch(name))}
    ups = {
        name: header.shapes.get(re.sub("lora_A(?=[.])", "lora_B", down).replace("lora_down", "lora_up"), ())
        for name, down in ((found[1], found[0]) for found in filter(None, map(_DOWN.fullmatch, header.shapes)))
    }
    if not downs:
        return None
    ranks = sorted({shape[0] for shape in downs.values() if shape})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    sizes = {name: (ups[name][:1], down[1:]) for name, down in downs.items()}
    model = next((model for model in MODELS if _fits(model, sizes)), None)
    made_for = f" for {_title(model.id)}" if model else ""
    advice = "put it into models/loras and load it with any LoRA loader"
    if model and model.id == "qwen-image":
        advice += "; Qwen-Image-i2L-Bias is such a file, made to be used beside the LoRAs of Coarse and Fine"
    return f"a LoRA{made_for}: {rank}, {len(downs)} layers", advice


def _diffusion_model(header: _Header) -> Found | None:
    for prefix in _MODEL_PREFIXES:
        weights = {
            name.removeprefix(prefix): shape for name, shape in header.shapes.items() if name.startswith(prefix)
        }
        model = next((model for model in MODELS if model.matches(weights)), None)
        if model:
            place = "checkpoints" if prefix == _MODEL_PREFIXES[0] else "diffusion_models"
            return f"the diffusion model {_title(model.id)}", f"put it into models/{place}; LoRAs are made for it"
    return None


_JUDGES: tuple[Callable[[_Header], Found | None], ...] = (
    _predictor,
    _version_1,
    _encoder,
    _lora,
    _diffusion_model,
)
_LOAD = "put it into models/i2l and load it with Load i2L Predictor"


def _fits(model: BaseModel, sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether all these layers, name -> (d_out,), (d_in,), are in the base model under these names."""
    slots = model.layout.by_name(model.weights())
    return all(name in slots and ((slots[name].d_out,), (slots[name].d_in,)) == size for name, size in sizes.items())


def _title(id: str) -> str:
    model = find_model(id)
    return f"{model.title} ({id})" if model else f"a base model this version does not know ({shown(id)})"


def _reason(header: _Header, error: I2LError) -> str:
    return str(error).removeprefix(f"{header.path.name}: ")


def _split(said: str) -> Found:
    """ "it is X; do Y" as a verdict and an advice"""
    what, _, advice = said.partition("; ")
    return what.removeprefix("it is "), advice or "nothing here can use it"
