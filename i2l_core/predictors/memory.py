"""Estimates of the memory that predictions need besides the weights, in bytes."""

from __future__ import annotations

import torch

from ..encoders import SQUARE, EncoderConfig
from .query.config import QueryConfig
from .v1.kinds import V1Config
from .v1.network import PIECE_BYTES


def encoder_memory(config: EncoderConfig, pixels: int, dtype: torch.dtype) -> int:
    """Bytes to encode one picture, besides the weights, estimated from the widest layer."""
    sizes = config.config
    tokens = (sizes["image_size"] // config.patch) ** 2 if config.kind == SQUARE else config.max_patches or 0
    width = 12 * sizes["hidden_size"] + 3 * sizes["intermediate_size"]
    picture = 3 * 4 * (3 * pixels + 4 * tokens * config.patch**2)  # float32 pixels, while they are resized
    return tokens * width * dtype.itemsize + picture


def predictor_memory(config: QueryConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes to predict from this many image tokens, besides the weights, estimated likewise."""
    states = (config.n_queries + tokens) * (14 * config.hidden + 3 * config.mlp)
    lora = sum(config.rank * (layer.d_in + layer.d_out) for layer in config.layers)
    return (states + tokens * config.token_dim + 3 * lora) * dtype.itemsize


def v1_memory(config: V1Config, pictures: int, dtype: torch.dtype) -> int:
    """Bytes that predicting takes: the LoRA while it is put together, and a piece of the weights in two types."""
    lora = pictures * config.rank * sum(layer.d_in + layer.d_out for layer in config.adapted_layers)
    return 3 * lora * dtype.itemsize + 2 * PIECE_BYTES
