"""Files of templates as they are published, small and with random weights, from the demo world's FLUX.2 sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.kv_caches.dit import DitTemplate

BLOCKS = ("double_0", "single_0", "single_1")


def dit_file(path: Path, template: DitTemplate, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A template of a whole network; every output depends on every input."""
    gen = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.rand(shape, generator=gen) + 0.5
        if len(shape) == 1
        else torch.randn(shape, generator=gen) * shape[-1] ** -0.5
        for name, shape in template.shapes().items()
    }
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    return path


def value_tensors(
    blocks=BLOCKS, wide: int = 256, tokens: int = 9, waves: int = 16, prefix: str = "", seed: int = 0
) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    shapes = {
        "prefer_value_embedder.0.weight": (wide, waves),
        "prefer_value_embedder.0.bias": (wide,),
        "prefer_value_embedder.2.weight": (wide, wide),
        "prefer_value_embedder.2.bias": (wide,),
        "positional_embedding": (tokens, wide),
    }
    return {
        f"{prefix}proj_{which}.{block}.{part}": torch.randn(shape, generator=gen) * shape[-1] ** -0.5
        for which in "kv"
        for block in blocks
        for part, shape in shapes.items()
    }


def value_file(path: Path, dtype: torch.dtype = torch.float32, prefixes=("",), **sizes) -> Path:
    tensors: dict[str, Tensor] = {}
    for seed, prefix in enumerate(prefixes):
        tensors |= value_tensors(prefix=prefix, seed=seed, **sizes)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    return path
