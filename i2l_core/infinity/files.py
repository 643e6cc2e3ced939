"""Released files of Infinity, by names and shapes: what is in them, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..checks import listed
from ..errors import I2LError
from .config import InfinityConfig, Shapes
from .transformer import Infinity

_CHUNK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.")
# Biases of q, k, v: what a file holds apart, in the order of the Linear's rows; None: it has none, or zeros
_FOLDED = {"sa.mat_qkv": ("q_bias", None, "v_bias"), "ca.mat_kv": (None, "v_bias")}
_ZEROS = "zero_k_bias"


def released_names(names: Mapping[str, tuple[int, ...]] | list[str]) -> dict[str, str]:
    """Each name of a file -> the same with blocks counted through: chunks only group them. Raises I2LError for chunks
    of different sizes, or gaps."""
    sizes: dict[int, set[int]] = {}
    for name in names:
        if match := _CHUNK.match(name):
            sizes.setdefault(int(match[1]), set()).add(int(match[2]))
    starts, total = {}, 0
    for chunk in range(len(sizes)):
        blocks = sizes.get(chunk, set())
        if blocks != set(range(len(blocks))) or not blocks:
            raise I2LError(
                f"expected blocks without gaps, but chunk {chunk} lacks some; download the file again"
            )
        starts[chunk], total = total, total + len(blocks)
    return {
        name: f"blocks.{starts[int(match[1])] + int(match[2])}.{name[match.end() :]}"
        if (match := _CHUNK.match(name))
        else name
        for name in names
    }


def check_transformer(shapes: Shapes, patchify: bool | None = None) -> InfinityConfig:
    """The sizes of a transformer file, from names and shapes alone. Raises I2LError, by name, unless they are exactly
    those of one."""
    if "trainer" in shapes or any(name.startswith("trainer.") for name in shapes):
        raise I2LError("this is a training checkpoint of Infinity; export its transformer's weights alone")
    config = InfinityConfig.from_shapes(shapes, patchify)
    names = released_names(dict(shapes))
    found = {names[name]: tuple(shape) for name, shape in shapes.items()}
    expected = _expected(config)
    optional = {name for name in expected if name.endswith(_ZEROS)}
    if missing := sorted(set(expected) - set(found) - optional):
        raise I2LError(f"the transformer lacks {listed(missing)}; download all of its files again")
    if unknown := sorted(set(found) - set(expected)):
        raise I2LError(
            f"expected an Infinity transformer, but it also has {listed(unknown)}; choose its file"
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise I2LError(f"expected {name} of shape {expected[name]}, got {shape}; download the file again")
    return config


def transformer_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checked file under the names of Infinity(config).state_dict(). Parts of them, not copies, where
    nothing is joined."""
    names = released_names({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return _folded({names[name]: tensor for name, tensor in weights.items()})


def _folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        part = name.rpartition(".")
        if part[2] in ("q_bias", "v_bias", _ZEROS):
            continue
        for kind in ("sa.mat_qkv", "ca.mat_kv"):
            if not name.endswith(f"{kind}.weight"):
                continue
            place = name.removesuffix(f"{kind}.weight")
            owner = place + kind.partition(".")[0]
            apart = [key and weights[f"{owner}.{key}"] for key in _FOLDED[kind]]
            like = next(bias for bias in apart if bias is not None)
            bias = torch.cat([torch.zeros_like(like) if b is None else b for b in apart])
            if kind == "sa.mat_qkv":
                width = len(like)
                found |= {f"{owner}.qk.weight": tensor[: 2 * width], f"{owner}.qk.bias": bias[: 2 * width]}
                found |= {f"{owner}.v.weight": tensor[2 * width :], f"{owner}.v.bias": bias[2 * width :]}
            else:
                found |= {name: tensor, f"{owner}.mat_kv.bias": bias}
            break
        else:
            found[name] = tensor
    return found


def _expected(config: InfinityConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released file, with blocks counted through, from the module that is built."""
    model = Infinity(config, device="meta")
    expected: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        shape, width = tuple(tensor.shape), config.width
        if name.endswith(("sa.qk.weight", "sa.qk.bias", "sa.v.weight")):
            continue
        if name.endswith("sa.v.bias"):
            owner = name.removesuffix("v.bias")
            expected |= {f"{owner}mat_qkv.weight": (3 * width, width)}
            expected |= {owner + bias: (width,) for bias in ("q_bias", "v_bias", _ZEROS)}
        elif name.endswith("ca.mat_kv.bias"):
            owner = name.removesuffix("mat_kv.bias")
            expected |= {owner + bias: (width,) for bias in ("v_bias", _ZEROS)}
        else:
            expected[name] = shape
    return expected
