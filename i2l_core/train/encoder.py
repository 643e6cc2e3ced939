"""Load the frozen vision encoder of a training from a predictor file or from a SigLIP folder of transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..checks import listed, shown
from ..encoders import NAFLEX, SQUARE, EncoderConfig, VisionEncoder
from ..errors import I2LError, reading
from ..files.safetensors import DTYPES, check_finite, open_safetensors, read_tensor
from ..predictors.query.file import load_predictor
from .config import ENCODER_WEIGHTS, EncoderTable

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
_SIZES += ("num_channels", "hidden_act", "layer_norm_eps")
_PREFIX = "vision_model."
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as transformers writes them


def load_encoder(table: EncoderTable) -> VisionEncoder:
    """On the CPU, in float32, frozen. Raises I2LError naming the file, and what does not fit."""
    source = Path(table.source)
    encoder = _from_folder(source) if os.path.isdir(source) else load_predictor(source).encoder
    if table.max_patches:
        if encoder.config.kind != NAFLEX:
            raise I2LError("[encoder] max_patches is for NaFlex encoders; leave it out")
        encoder.config = replace(encoder.config, max_patches=table.max_patches)
    return encoder.float().requires_grad_(False).eval()


def save_encoder(folder: Path, encoder: VisionEncoder) -> Path:
    """Write a folder that `load_encoder` and transformers read; the file of its weights."""
    config = encoder.config
    folder.mkdir(parents=True, exist_ok=True)
    resample = next(number for number, name in _RESAMPLE.items() if name == config.resample)
    seen = {"image_mean": config.mean, "image_std": config.std, "resample": resample}
    for name, about in ((_CONFIG, {"model_type": config.kind, **config.config}), (_PREPROCESSOR, seen)):
        (folder / name).write_text(json.dumps(about, indent=1), "utf-8")
    tensors = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in encoder.model.state_dict().items()}
    save_file(tensors, folder / ENCODER_WEIGHTS, {"format": "pt"})
    return folder / ENCODER_WEIGHTS


def _from_folder(folder: Path) -> VisionEncoder:
    """config.json of a whole SigLIP or SigLIP2, or of its vision half; weights of the vision half are picked."""
    seen = folder / _PREPROCESSOR
    problem = f"expected config.json and {ENCODER_WEIGHTS} in {folder}"
    with reading("[encoder] source", problem, "copy the folder again"):
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
        preprocessor = json.loads(seen.read_text("utf-8")) if seen.exists() else {}
        with open_safetensors(folder / ENCODER_WEIGHTS, "the weights of an encoder") as file:
            tensors = {name: read_tensor(file, name) for name in file.keys()}
        return _encoder(folder, config, preprocessor, tensors)


def _encoder(folder: Path, config: Any, preprocessor: Any, tensors: Mapping[str, Tensor]) -> VisionEncoder:
    if not isinstance(config, dict) or not isinstance(preprocessor, dict):
        raise I2LError(f"[encoder] source: a config in {folder} is not a JSON object")
    encoder = VisionEncoder(_config(config, preprocessor, folder), device="meta")
    expected = encoder.model.state_dict()
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    if twice := [name for name in expected if name in tensors and _PREFIX + name in tensors]:
        raise I2LError(f"[encoder] source: the weights in {folder} have {listed(twice)} under two names")
    missing = [name for name in expected if name not in weights]
    wrong = [n for n, t in expected.items() if n in weights and weights[n].shape != t.shape]
    if missing or wrong:
        raise I2LError(
            f"[encoder] source: the weights in {folder} do not fit its config.json: "
            f"missing {listed(missing) or 'none'}, of another shape {listed(wrong) or 'none'}"
        )
    for name in expected:
        if weights[name].dtype not in DTYPES.values():
            raise I2LError(
                f"[encoder] source: {name} in {folder} is {weights[name].dtype}, expected floats of 32 or 16 bits"
            )
        check_finite(name, weights[name])
    encoder.model.load_state_dict({name: weights[name] for name in expected}, strict=True, assign=True)
    return encoder


def _config(config: dict[str, Any], preprocessor: dict[str, Any], folder: Path) -> EncoderConfig:
    import transformers  # slow

    vision = config.get("vision_config", config)
    kind = config.get("model_type")
    kind = {"siglip": SQUARE, "siglip2": NAFLEX}.get(kind, kind) if isinstance(kind, str) else None
    if kind not in (SQUARE, NAFLEX) or not isinstance(vision, dict):
        raise I2LError(
            f"[encoder] source: {folder / _CONFIG} is of a {config.get('model_type')!r}; "
            f"expected siglip, siglip2, {SQUARE} or {NAFLEX}"
        )
    resample = preprocessor.get("resample")
    if resample is not None and (type(resample) is not int or resample not in _RESAMPLE):
        raise I2LError(
            f"[encoder] source: {folder / _PREPROCESSOR} has the resample {shown(resample)}, expected 2, bilinear, or "
            "3, bicubic"
        )
    square = kind == SQUARE
    grid = "image_size" if square else "num_patches"
    # transformers leaves out what equals its own default
    default = transformers.SiglipVisionConfig() if square else transformers.Siglip2VisionConfig()
    sizes = {name: vision.get(name, getattr(default, name)) for name in (*_SIZES, grid)}
    return EncoderConfig(
        kind,
        sizes,
        mean=preprocessor.get("image_mean", (0.5, 0.5, 0.5)),
        std=preprocessor.get("image_std", (0.5, 0.5, 0.5)),
        resample=_RESAMPLE.get(resample or 0, "bicubic" if square else "bilinear"),
        **{"image_size" if square else "max_patches": sizes[grid]},
    )
