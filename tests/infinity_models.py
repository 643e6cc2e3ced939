"""Tiny Infinity transformers with weights from a formula: the same numbers on every platform.

    w[i] = a (2 frac(43758.5453 |sin(12.9898 (i + 1) + crc32(name) mod 1000)|) - 1)

float64; a = sqrt(3 / last dimension), 0.5 for vectors and ada_gss; scale_mul_1H11 is ln 4. Names are the released ones.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.infinity import files
from i2l.i2l_core.infinity.coder import Coder, CoderConfig
from i2l.i2l_core.infinity.config import InfinityConfig

WIDTH, HEADS, DEPTH, CHUNKS, TEXT, TEXT_LENGTH = 64, 2, 4, 2, 128, 32


def numbers(name: str, *shape: int) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    x = 43758.5453 * torch.sin(12.9898 * (i + 1) + zlib.crc32(name.encode()) % 1000).abs()
    vector = len(shape) == 1 or name.endswith("ada_gss")
    scale = 0.5 if vector else math.sqrt(3 / shape[-1])
    return (scale * (2 * (x - x.floor()) - 1)).float().view(shape)


def released_shapes(
    token_bits: int = 8, width: int = WIDTH, depth: int = DEPTH, chunks: int = CHUNKS, heads: int = HEADS
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released transformer file of this size."""
    pool = max(1, TEXT // 128)
    shapes: dict[str, tuple[int, ...]] = {
        "cfg_uncond": (TEXT_LENGTH, TEXT),
        "pos_start": (1, 1, width),
        "lvl_embed.weight": (15, width),
        "text_norm.weight": (TEXT,),
        "text_proj_for_sos.ca.mat_q": (1, pool, width // pool),
        "text_proj_for_sos.ca.mat_kv.weight": (2 * width, TEXT),
        "text_proj_for_sos.ca.v_bias": (width,),
        "text_proj_for_sos.ca.zero_k_bias": (width,),
        **_linear("word_embed", token_bits, width),
        **_linear("text_proj_for_sos.ca.proj", width, width),
        **_linear("text_proj_for_ca.0", TEXT, width),
        **_linear("text_proj_for_ca.2", width, width),
        **_linear("shared_ada_lin.1", width, 6 * width),
        **_linear("head_nm.ada_lin.1", width, 2 * width),
        **_linear("head", width, 2 * token_bits),
    }
    for i in range(depth):
        each = depth // max(chunks, 1)
        block = f"block_chunks.{i // each}.module.{i % each}." if chunks else f"blocks.{i}."
        shapes |= {
            block + "ada_gss": (1, 1, 6, width),
            block + "sa.mat_qkv.weight": (3 * width, width),
            block + "sa.q_bias": (width,),
            block + "sa.v_bias": (width,),
            block + "sa.zero_k_bias": (width,),
            block + "sa.scale_mul_1H11": (1, heads, 1, 1),
            block + "ca.mat_kv.weight": (2 * width, width),
            block + "ca.v_bias": (width,),
            block + "ca.zero_k_bias": (width,),
            block + "ca_norm.weight": (width,),
            block + "ca_norm.bias": (width,),
            **_linear(block + "sa.proj", width, width),
            **_linear(block + "ca.mat_q", width, width),
            **_linear(block + "ca.proj", width, width),
            **_linear(block + "ffn.fc1", width, 4 * width),
            **_linear(block + "ffn.fc2", 4 * width, width),
        }
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {name + ".weight": (outputs, inputs), name + ".bias": (outputs,)}


def released_weights(token_bits: int = 8, **sizes: int) -> dict[str, Tensor]:
    """A released transformer file of this size, filled by the formula."""
    weights = {}
    for name, shape in released_shapes(token_bits, **sizes).items():
        if name.endswith("scale_mul_1H11"):
            weights[name] = torch.full(shape, math.log(4))
        elif name.endswith("zero_k_bias"):
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = numbers(name, *shape)
    return weights


def config(token_bits: int = 8, patchify: bool = False, **sizes: int) -> InfinityConfig:
    return InfinityConfig.from_shapes(released_shapes(token_bits, **sizes), patchify)


def coder_shapes(config: CoderConfig, wrapped: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released VAE file of this size. With wrappers its layers are modules of their own:
    conv1.conv.weight, norm1.norm.weight."""
    plain = {name: tuple(t.shape) for name, t in Coder(config, device="meta").state_dict().items()}
    if not wrapped:
        return plain
    return {
        ".".join([*name.split(".")[:-1], "norm" if "norm" in name else "conv", name.split(".")[-1]]): shape
        for name, shape in plain.items()
    }


def coder_weights(config: CoderConfig, wrapped: bool = True) -> dict[str, Tensor]:
    """A released VAE file, filled by the formula: for convolutions a = sqrt(3 / inputs of one output), names without
    wrappers."""
    names = zip(coder_shapes(config, False), coder_shapes(config, wrapped).items(), strict=True)
    weights = {}
    for plain, (name, shape) in names:
        found = numbers(plain, *shape)
        weights[name] = found if len(shape) == 1 else found * math.sqrt(shape[-1] / math.prod(shape[1:]))
    return weights


CODER = CoderConfig(bits=8, base=32, encoder=(32, 64, 64), decoder=(32, 32, 64), res_blocks=1)
# 16 pixels a place, as pictures for a transformer without patches need
CODER_16 = CoderConfig(bits=8, base=32, encoder=(32,) * 5, decoder=(32,) * 5, res_blocks=1)


def hosted_model(folder: Path):
    """The tiny transformer as the host loads it, from a file that is written into the folder."""
    from i2l.i2l_core.host.infinity.model import load_model

    path = folder / "model.safetensors"
    save_file(released_weights(), path)
    return load_model(path)


def hosted_vae(config: CoderConfig):
    """A picture coder of these sizes as a VAE of the host."""
    from i2l.i2l_core.host.infinity.vae import InfinityVAE

    return InfinityVAE(config, files.coder_weights(coder_weights(config)))
