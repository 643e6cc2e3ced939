"""Predictors of version 1: the published ones without weights, and tiny ones with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from i2l.i2l_core.layouts import MODELS, BaseModel
from i2l.i2l_core.layouts.qwen_image import QWEN_IMAGE
from i2l.i2l_core.predictors.v1 import V1Predictor
from i2l.i2l_core.predictors.v1_kinds import KINDS, Kind, Residual, V1Config

Z_IMAGE, QWEN = KINDS


def widths(kind: Kind, dim: int, mlp: int) -> tuple[tuple[int, int], ...]:
    """(d_in, d_out) of every adapted layer of a base model of these widths."""
    others = {
        "w1": (dim, mlp),
        "w3": (dim, mlp),
        "w2": (mlp, dim),
        "net.2": (mlp, dim),
        "mod.1": (dim, 6 * dim),
    }
    return tuple(
        next((sizes for end, sizes in others.items() if name.endswith(end)), (dim, dim))
        for name in kind.layers
    )


# title -> configuration, and the hash under which DiffSynth-Studio 2.1.12 knows the published file
PUBLISHED = {
    "Z-Image-i2L": (
        V1Config(Z_IMAGE, (30, 2, 2), widths(Z_IMAGE, 3840, 10240), 5632, 128),
        "9510cb8cd1dd34ee0e4f111c24905510",
    ),
    "Qwen-Image-i2L Style": (
        V1Config(QWEN, (60,), widths(QWEN, 3072, 12288), 5632, 64),
        "0aad514690602ecaff932c701cb4b0bb",
    ),
    "Qwen-Image-i2L Coarse": (
        V1Config(QWEN, (60,), widths(QWEN, 3072, 12288), 5632, 128, Residual(71, 3584, 1024)),
        "a166c33455cdbd89c0888a3645ca5c0f",
    ),
    "Qwen-Image-i2L Fine": (
        V1Config(QWEN, (60,), widths(QWEN, 3072, 12288), 5632, 128, Residual(1376, 3584, 64)),
        "a5476e691767a4da6d3a6634a10f7408",
    ),
}

# base models that only tests know
TINY_QWEN = BaseModel("tiny-qwen", "a tiny Qwen-Image", QWEN_IMAGE, {"hidden": 24, "layers": 2})
MODELS_AND_TINY_QWEN = (*MODELS, TINY_QWEN)


def tiny_z_image(token_dim: int = 10, code: int = 3) -> V1Config:
    """For the tiny world's base model."""
    return V1Config(Z_IMAGE, (6, 1, 1), widths(Z_IMAGE, 256, 682), token_dim, code)


def tiny_qwen(residual: Residual | None = None, token_dim: int = 10, code: int = 3) -> V1Config:
    """Needs MODELS_AND_TINY_QWEN in place of v1_kinds.MODELS."""
    return V1Config(QWEN, (2,), widths(QWEN, 24, 40), token_dim, code, residual)


def random_predictor(config: V1Config, dtype: torch.dtype = torch.float32) -> V1Predictor:
    """Products of about unit size, so that no term vanishes beside another."""
    predictor = V1Predictor(config)
    for tensor in predictor.tensors().values():
        tensor.normal_(std=tensor.shape[1] ** -0.5)
    return predictor.to(dtype)


def save(predictor: V1Predictor, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in predictor.tensors().items()}, path)
    return path
