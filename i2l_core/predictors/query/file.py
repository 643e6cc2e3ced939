"""Predictor files of the query family: one safetensors file holds predictor and vision encoder.

Tensors are named "predictor.*" and "encoder.*". The metadata entry "i2l" is JSON:

    {"format": "i2l-predictor", "version": 1, "family": "query", "base_model": {"id": ...}, "about": {...},
     "predictor": {QueryConfig}, "encoder": {EncoderConfig}}

Reading is strict, allocates only what the file holds, and never unpickles.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...checks import check_entries, shown
from ...encoders import EncoderConfig, VisionEncoder
from ...errors import I2LError
from ...files.atomic import replacing
from ...files.kinds import describe_tensors
from ...files.safetensors import (
    check_dtypes,
    check_finite,
    check_shapes,
    is_copied,
    open_safetensors,
    read_tensor,
    shapes_and_dtypes,
)
from .config import QueryConfig
from .network import QueryNetwork

METADATA_KEY = "i2l"
FORMAT = "i2l-predictor"
VERSION = 1
FAMILY = "query"

_REQUIRED = ("format", "version", "family", "base_model", "predictor", "encoder")


@dataclass(frozen=True, eq=False)
class LoadedPredictor:
    """A predictor, the encoder it was trained with, and what the file says about both.

    `meta`: {"base_model": {"id": ..., ...}, "about": {...}}; "about" is free text for people.
    """

    config: QueryConfig
    predictor: QueryNetwork
    encoder: VisionEncoder
    meta: dict[str, Any]
    name: str  # of the file, without its extension

    @property
    def base_model(self) -> str:
        """id of the base model that the predicted LoRAs are for"""
        return self.meta["base_model"]["id"]


@dataclass(frozen=True, eq=False)
class PredictorHeader:
    """The header of a predictor file: metadata, and shapes and dtypes by name."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def save_predictor(
    path: str | Path, predictor: QueryNetwork, encoder: VisionEncoder, meta: Mapping[str, Any]
) -> None:
    """Write a predictor file atomically; a file of that name is replaced.

    `meta`: {"base_model": {"id": ...}} and optionally "about", a JSON object.
    Raises I2LError when a tensor is not finite, the parts do not fit each other, or the disk refuses.
    """
    path = Path(path)
    meta = check_entries("meta", meta, ("base_model",), ("about",))
    _check_parts(meta, predictor.config, encoder.config)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "family": FAMILY,
        "base_model": meta["base_model"],
        "about": meta.get("about", {}),
        "predictor": predictor.config.to_json(),
        "encoder": encoder.config.to_json(),
    }
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in _tensors(predictor, encoder).items()
    }
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    header = {METADATA_KEY: json.dumps(metadata, ensure_ascii=False, allow_nan=False)}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, header)
    except (OSError, SafetensorError) as error:
        raise I2LError(
            f"cannot save {path}: {error}. Nothing was changed; check the folder and its space"
        ) from error


def load_predictor(path: str | Path, operations: ModuleType | Any = nn) -> LoadedPredictor:
    """Read a predictor file: on the CPU, in the dtypes of the file, the encoder frozen.

    `operations` as for QueryPredictor. Raises I2LError naming the file when it is damaged, is something else, was
    written by another version, describes an impossible network, does not hold exactly its tensors, or holds
    NaN or infinity.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        header = _header(file)
        predictor, encoder, meta = _networks(header)
        if operations is not nn:
            predictor = QueryNetwork(predictor.config, device="meta", operations=operations)

        get = functools.partial(read_tensor, file) if is_copied(path) else file.get_tensor
        tensors = {name: get(name) for name in header.shapes}
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        predictor.load_state_dict(_part(tensors, "predictor."), strict=True, assign=True)
        encoder.model.load_state_dict(_part(tensors, "encoder."), strict=True, assign=True)
    config = predictor.config
    return LoadedPredictor(config, predictor.eval(), encoder.eval().requires_grad_(False), meta, path.stem)


def check_header(path: str | Path) -> tuple[QueryConfig, EncoderConfig, dict[str, Any]]:
    """The configurations in a predictor file, and its metadata as in LoadedPredictor. Reads no tensor.

    Raises I2LError as `load_predictor` does, except for values.
    """
    with open_safetensors(Path(path)) as file:
        predictor, encoder, meta = _networks(_header(file))
    return predictor.config, encoder.config, meta


def _networks(header: PredictorHeader) -> tuple[QueryNetwork, VisionEncoder, dict[str, Any]]:
    """Both networks as the header describes them, without memory: of exactly the tensors that it lists."""
    about = header.metadata
    config = QueryConfig.from_json(about["predictor"])
    encoder_config = EncoderConfig.from_json(about["encoder"])
    meta = {"base_model": about["base_model"], "about": about.get("about", {})}
    _check_parts(meta, config, encoder_config)
    predictor = QueryNetwork(config, device="meta")
    encoder = VisionEncoder(encoder_config, device="meta")
    _check_tensors(header, _tensors(predictor, encoder))
    return predictor, encoder, meta


def _header(file: Any) -> PredictorHeader:
    shapes, dtypes = shapes_and_dtypes(file)
    metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise I2LError(f"expected a predictor file, but {describe_tensors(shapes, metadata)}")
    try:
        about = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise I2LError(f"its metadata is damaged ({error}); download it again") from error
    if not isinstance(about, dict):
        raise I2LError(f"its metadata must be a JSON object, got {type(about).__name__}")
    if about.get("format") != FORMAT:
        if about.get("format") == "i2l-lora":
            raise I2LError("expected a predictor file, but it is a LoRA; put it into models/loras")
        raise I2LError(f"expected the format {FORMAT}, got {shown(about.get('format'))}")
    if type(about.get("version")) is not int or about["version"] != VERSION:
        version = shown(about.get("version"))
        raise I2LError(
            f"predictor file version {version} is not known (known: {VERSION}); update ComfyUI-i2L"
        )
    about = check_entries("its metadata", about, _REQUIRED, ("about",))
    if about["family"] != FAMILY:
        raise I2LError(f"predictor family {shown(about['family'])} is not known (known: {FAMILY})")
    return PredictorHeader(about, shapes, dtypes)


def _check_parts(meta: Mapping[str, Any], config: QueryConfig, encoder: EncoderConfig) -> None:
    base = meta["base_model"]
    name = base.get("id") if isinstance(base, Mapping) else None
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise I2LError("base_model must be a JSON object with the id of a base model")
    if not isinstance(meta.get("about", {}), Mapping):
        raise I2LError(f"about must be a JSON object, got {type(meta['about']).__name__}")
    if config.token_dim != encoder.token_dim:
        raise I2LError(
            f"the predictor reads tokens of width {config.token_dim}, its encoder gives {encoder.token_dim}"
        )


def _tensors(predictor: nn.Module, encoder: VisionEncoder) -> dict[str, Tensor]:
    """Every tensor of a file, under its name."""
    parts = {"predictor.": predictor, "encoder.": encoder.model}
    return {
        prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()
    }


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_tensors(header: PredictorHeader, expected: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    check_shapes(header.shapes, shapes, "its metadata describes")
    for prefix in ("predictor.", "encoder."):
        check_dtypes(
            (dtype for name, dtype in header.dtypes.items() if name.startswith(prefix)),
            f"the {prefix}* tensors",
        )
