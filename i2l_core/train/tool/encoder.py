"""The frozen vision encoder of a training: from a predictor file, or from a folder as transformers saves SigLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ...checks import listed
from ...encoders import NAFLEX, SQUARE, EncoderConfig, VisionEncoder
from ...errors import I2LError
from ...predictors.checkpoint import load_predictor
from .config import ENCODER_WEIGHTS, EncoderTable

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
_MORE = ("num_channels", "hidden_act", "layer_norm_eps")  # entries of the config that may be left out
_DEFAULTS = {  # transformers leaves out of config.json what equals its own default
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": 224,
    "num_patches": 256,
    "hidden_act": "gelu_pytorch_tanh",
}
_PREFIX = "vision_model."
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, in preprocessor_config.json


def load_encoder(table: EncoderTable) -> VisionEncoder:
    """On the CPU, in float32, frozen. Raises I2LError naming the file, and what does not fit."""
    source = Path(table.source)
    encoder = _from_folder(source) if source.is_dir() else load_predictor(source).encoder
    if table.max_patches:
        if encoder.config.kind != NAFLEX:
            raise I2LError("[encoder] max_patches is for NaFlex encoders; leave it out")
        encoder.config = replace(encoder.config, max_patches=table.max_patches)
    return encoder.float().requires_grad_(False).eval()


def _from_folder(folder: Path) -> VisionEncoder:
    """config.json of a whole SigLIP or SigLIP2, or of its vision half; weights of the vision half are picked."""
    seen = folder / "preprocessor_config.json"
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        preprocessor = json.loads(seen.read_text("utf-8")) if seen.exists() else {}
        tensors = load_file(folder / ENCODER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise I2LError(
            f"[encoder] source: expected config.json and {ENCODER_WEIGHTS} in {folder}: {error}"
        ) from error
    if not isinstance(config, dict) or not isinstance(preprocessor, dict):
        raise I2LError(f"[encoder] source: a config in {folder} is not a JSON object")
    encoder = VisionEncoder(_config(config, preprocessor, folder), device="meta")
    expected = encoder.model.state_dict()
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    missing = [name for name in expected if name not in weights]
    wrong = [n for n, t in expected.items() if n in weights and weights[n].shape != t.shape]
    if missing or wrong:
        raise I2LError(
            f"[encoder] source: the weights in {folder} do not fit its config.json: "
            f"missing {listed(missing) or 'none'}, of another shape {listed(wrong) or 'none'}"
        )
    encoder.model.load_state_dict({name: weights[name] for name in expected}, strict=True, assign=True)
    return encoder


def _config(config: dict[str, Any], preprocessor: dict[str, Any], folder: Path) -> EncoderConfig:
    vision = config.get("vision_config", config)
    kind = {"siglip": SQUARE, "siglip2": NAFLEX}.get(config.get("model_type", ""), config.get("model_type"))
    if kind not in (SQUARE, NAFLEX) or not isinstance(vision, dict):
        raise I2LError(
            f"[encoder] source: {folder / 'config.json'} is of a {config.get('model_type')!r}; "
            f"expected siglip, siglip2, {SQUARE} or {NAFLEX}"
        )
    grid = "image_size" if kind == SQUARE else "num_patches"
    sizes = {name: vision.get(name, _DEFAULTS[name]) for name in (*_SIZES, grid)}
    sizes |= {
        name: vision.get(name, _DEFAULTS.get(name)) for name in _MORE if vision.get(name, _DEFAULTS.get(name))
    }
    seen: dict[str, Any] = {
        "mean": preprocessor.get("image_mean", (0.5, 0.5, 0.5)),
        "std": preprocessor.get("image_std", (0.5, 0.5, 0.5)),
        "resample": _RESAMPLE.get(preprocessor.get("resample", 2), "bilinear"),
    }
    if kind == SQUARE:
        return EncoderConfig(kind, sizes, image_size=sizes["image_size"], **seen)
    return EncoderConfig(kind, sizes, max_patches=sizes["num_patches"], **seen)
