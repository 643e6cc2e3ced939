"""Encoder files of i2L version 1 in small, with random weights: every output depends on every input."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from i2l.i2l_core.encoders import DINOV3, SIGLIP2, PooledConfig, PooledEncoder

TINY = {
    SIGLIP2: PooledConfig(SIGLIP2, width=96, blocks=2, mlp=64, patch=16, side=384),
    DINOV3: PooledConfig(DINOV3, width=128, blocks=2, mlp=96, patch=16, side=224, registers=4),
}
WIDTH = sum(config.width for config in TINY.values())


def tiny_tensors(config: PooledConfig, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Random tensors under the names of the file."""
    gen = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in PooledEncoder(config, device="meta").file_shapes().items():
        x = torch.randn(shape, generator=gen)
        if len(shape) == 1:
            x = x * 0.1 + (1.0 if ("norm" in name and name.endswith("weight")) or "lambda" in name else 0.0)
        elif "token" not in name and "probe" not in name:
            x = x / math.prod(shape[1:]) ** 0.5
        tensors[name] = x.to(dtype)
    return tensors


def save_encoder(path: Path, config: PooledConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tiny_tensors(config, dtype, seed), path)
    return path
