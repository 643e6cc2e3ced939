"""Predictors of version 1: the published ones without weights, and tiny ones with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from i2l.i2l_core.base_models import BaseModel, find_model
from i2l.i2l_core.base_models.lumina2 import LUMINA2
from i2l.i2l_core.base_models.qwen_image import QWEN_IMAGE
from i2l.i2l_core.predictors.v1.kinds import QWEN, Z_IMAGE, Residual, V1Config
from i2l.i2l_core.predictors.v1.network import V1Network


def known(id: str) -> BaseModel:
    model = find_model(id)
    assert model is not None
    return model


# title -> configuration, and the hash under which DiffSynth-Studio 2.1.12 knows the published file
PUBLISHED = {
    "Z-Image-i2L": (
        V1Config(Z_IMAGE, known("z-image"), 5632, 128),
        "9510cb8cd1dd34ee0e4f111c24905510",
    ),
    "Qwen-Image-i2L Style": (
        V1Config(QWEN, known("qwen-image"), 5632, 64),
        "0aad514690602ecaff932c701cb4b0bb",
    ),
    "Qwen-Image-i2L Coarse": (
        V1Config(QWEN, known("qwen-image"), 5632, 128, residual=Residual(71, 3584, 1024)),
        "a166c33455cdbd89c0888a3645ca5c0f",
    ),
    "Qwen-Image-i2L Fine": (
        V1Config(QWEN, known("qwen-image"), 5632, 128, residual=Residual(1376, 3584, 64)),
        "a5476e691767a4da6d3a6634a10f7408",
    ),
}


def z_image(layers: int, dim: int, mlp: int) -> BaseModel:
    sizes = {"dim": dim, "layers": layers}
    return BaseModel("other-z", "another Z-Image", LUMINA2, sizes, {"mlp": mlp, "refiners": 1, "context": 1})


def qwen(layers: int, hidden: int) -> BaseModel:
    return BaseModel("other-qwen", "another Qwen-Image", QWEN_IMAGE, {"hidden": hidden, "layers": layers}, {})


# base models that only tests know, for v1_kinds.MODELS
TINY_MODELS = (z_image(layers=3, dim=12, mlp=20), qwen(layers=2, hidden=8))


def tiny_z_image() -> V1Config:
    return V1Config(Z_IMAGE, TINY_MODELS[0], token_dim=10, code=3)


def tiny_qwen(residual: Residual | None = None) -> V1Config:
    return V1Config(QWEN, TINY_MODELS[1], token_dim=10, code=3, residual=residual)


def random_predictor(config: V1Config, dtype: torch.dtype = torch.float32) -> V1Network:
    """Products of about unit size, so that no term vanishes beside another."""
    predictor = V1Network(config)
    for tensor in predictor.tensors().values():
        tensor.normal_(std=tensor.shape[1] ** -0.5)
    return predictor.to(dtype)


def save(predictor: V1Network, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in predictor.tensors().items()}, path)
    return path
