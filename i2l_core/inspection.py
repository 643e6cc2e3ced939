"""Say what a file or folder is and where it belongs. Reads only headers: no tensor is loaded, no code is run."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .base_models import MODELS, other_model, title_of
from .encoders import KINDS, PooledEncoder
from .encoders import recognise as recognise_encoder
from .errors import I2LError
from .files.kinds import describe_bytes, describe_tensors
from .files.safetensors import FileHeader, check_names, check_shapes, shapes_and_dtypes
from .lora_files.keys import not_of_the_model, split_key
from .lora_files.names import recognise_lora
from .predictors import family_of
from .predictors.base import Source

_INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of equal shape and dtype whose names differ only in numbers; each number is shown as *."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it
    count: int


@dataclass(frozen=True)
class Inspection:
    """`verdict`: what the file is; `advice`: what to do with it; one line each.

    `groups` and `metadata` are empty unless it is a safetensors file.
    """

    verdict: str
    advice: str
    groups: tuple[TensorGroup, ...] = ()
    metadata: Mapping[str, str] | None = None


Found = tuple[str, str]  # verdict, advice


def inspect_path(path: Path) -> Inspection:
    """The inspection of any file or folder. Raises I2LError only if it does not exist or cannot be read."""
    if os.path.isdir(path):  # does not raise for names that are too long
        source = Source(path, None)
        family = family_of(source)
        assert family is not None
        return Inspection(*family.describe(source))
    try:
        with safe_open(
            path, framework="np"
        ) as file:  # does not map the file, so it may be larger than the memory
            check_names(path)
            header = FileHeader(path, *shapes_and_dtypes(file), file.metadata() or {})
    except (SafetensorError, OSError, UnicodeError) as error:
        said = describe_bytes(path, error)
        if not os.path.isfile(path):
            raise I2LError(f"{path}: {said}") from error
        return Inspection(*_split(said))
    except I2LError as error:
        return Inspection(*_split(f"it is damaged: {error}"))
    kinds = Counter(
        (_INDEX.sub("*", name), header.shapes[name], header.dtypes[name]) for name in header.shapes
    )
    groups = tuple(TensorGroup(*kind, count) for kind, count in kinds.items())
    verdict = next(filter(None, (judge(header) for judge in _JUDGES)), None)
    if verdict is None:
        verdict = _split(describe_tensors(header.shapes, header.metadata))
    return Inspection(*verdict, groups, header.metadata)


def _predictor(header: FileHeader) -> Found | None:
    source = Source(header.path, header)
    family = family_of(source)
    return family.describe(source) if family else None


def _encoder(header: FileHeader) -> Found | None:
    config = recognise_encoder(header.shapes)
    if config is None:
        return None
    try:
        check_shapes(header.shapes, PooledEncoder(config, device="meta").file_shapes(), f"of {config}")
    except I2LError as error:
        return f"an image encoder of i2L version 1 that cannot be used: {error}", "download it again"
    place = f"models/clip_vision/{Path(KINDS[config.kind].file).parent}"
    return f"an image encoder of i2L version 1: {config}", f"put it into {place}"


def _lora(header: FileHeader) -> Found | None:
    """Only a plain one; other kinds are named by `describe_tensors`."""
    parts: dict[tuple[str, str], tuple[int, ...]] = {}
    for key, shape in header.shapes.items():
        if not_of_the_model(key):
            continue
        part = split_key(key)
        if part is None:
            return None
        parts[part] = shape
    downs = {name: shape for (kind, name), shape in parts.items() if kind == "down" and len(shape) == 2}
    ups = {name: parts.get(("up", name), ()) for name in downs}
    if not downs or any(len(shape) != 2 for shape in ups.values()):
        return None
    sizes = {name: (ups[name][0], downs[name][1]) for name in downs}
    lora = recognise_lora(sizes)
    model, other = lora.model, other_model(sizes)
    made_for = " or ".join(f"a model of the {one.title}" for one in lora.architectures)
    made_for = title_of(model.id) if model else other.title if other else made_for
    ranks = sorted({shape[0] for shape in downs.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    advice = "put it into models/loras; any LoRA loader applies it"
    if model and model.id == "qwen-image":
        advice += ". Qwen-Image-i2L-Bias is such a file: use it together with the LoRAs of Coarse and Fine"
    return f"a LoRA for {made_for or 'an unknown base model'}: {rank}, {len(downs)} layers", advice


def _diffusion_model(header: FileHeader) -> Found | None:
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
                f"the diffusion model {title_of(model.id)}",
                f"put it into models/{place}; LoRAs are made for it",
            )
    return None


_JUDGES: tuple[Callable[[FileHeader], Found | None], ...] = (
    _predictor,
    _encoder,
    _lora,
    _diffusion_model,
)


def _split(said: str) -> Found:
    """ "it is X; do Y" as a verdict and an advice"""
    what, _, advice = said.partition("; ")
    return what.removeprefix("it is "), advice or "nothing here can use it"
