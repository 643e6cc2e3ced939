"""Released files of Infinity, by names and shapes: what is in them, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ..checks import listed
from ..errors import I2LError
from .coder import Coder, CoderConfig
from .config import InfinityConfig, Shapes
from .transformer import Infinity

T = TypeVar("T")

_CHUNK = re.compile(r"block_chunks\.(\d{1,6})\.module\.(\d{1,6})\.")
# Biases of q, k, v: what a file holds apart, in the order of the Linear's rows; None: it has none, or zeros
_FOLDED = {"sa.mat_qkv": ("q_bias", None, "v_bias"), "ca.mat_kv": (None, "v_bias")}
_ZEROS = "zero_k_bias"
# Wrappers around the layers of the VAE: conv1.conv.weight, norm1.norm.bias, downsample.conv.conv.weight
_WRAPPED = re.compile(
    r"((?:conv_in|conv_out|conv1|conv2|nin_shortcut|sample\.conv)\.)conv\.|((?:norm1|norm2|norm_out)\.)norm\."
)
_SHARD = re.compile(r"(.*-)(\d{1,9})-of-(\d{1,9})(\.\w+)")
_MOST_SHARDS = 1000

TRANSFORMER, CODER = "transformer", "VAE"


def kind_of(names: Iterable[str]) -> str | None:
    """TRANSFORMER, CODER, or None for neither: what the names of a file are of."""
    found = set(names)
    if {"cfg_uncond", "pos_start"} & found and "word_embed.weight" in found:
        return TRANSFORMER
    plain = {coder_name(name) for name in found}
    if {"encoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"} <= plain:
        return CODER
    return None


def shard_names(name: str) -> list[str]:
    """The names of all files that a file is one of: "x-00002-of-00004.safetensors" is one of four. Of any other name,
    itself. Raises I2LError for a number of files that is not believed."""
    match = _SHARD.fullmatch(name)
    if not match:
        return [name]
    start, number, total, end = match.groups()
    if not 1 <= int(number) <= int(total) <= _MOST_SHARDS:
        raise I2LError(
            f"expected one of at most {_MOST_SHARDS} files, got {name}; give it its first name back"
        )
    return [f"{start}{i:0{len(number)}d}-of-{total}{end}" for i in range(1, int(total) + 1)]


def joined(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """What several files hold, by file name. Raises I2LError for a name in two of them."""
    found: dict[str, T] = {}
    for file, part in parts.items():
        if twice := sorted(set(found) & set(part)):
            raise I2LError(f"{file}: it has {listed(twice)} again; keep the files of one model in a folder")
        found.update(part)
    return found


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


def check_k_biases(weights: Mapping[str, Tensor]) -> None:
    """Raise I2LError, by name, for a bias of k that is not zero: the released files hold zeros, which are not kept."""
    for name, tensor in weights.items():
        if name.endswith(_ZEROS) and tensor.float().any():
            raise I2LError(f"expected zeros in {name}, got other numbers; choose a file of a released model")


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


def released_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `transformer_weights`, for a model of one chunk without wrappers. Raises I2LError, by name, for a
    bias of k, which a released file cannot hold."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        owner = name.removesuffix("qk.weight").removesuffix("qk.bias").removesuffix("mat_kv.bias")
        if name.endswith(".sa.qk.weight"):
            found[f"{owner}mat_qkv.weight"] = torch.cat([tensor, weights[f"{owner}v.weight"]])
        elif name.endswith(".sa.qk.bias"):
            found[f"{owner}q_bias"], k_bias = tensor.chunk(2)
            found[f"{owner}v_bias"] = weights[f"{owner}v.bias"]
            _check_zero(name, k_bias)
        elif name.endswith(".ca.mat_kv.bias"):
            k_bias, found[f"{owner}v_bias"] = tensor.chunk(2)
            _check_zero(name, k_bias)
        elif not name.endswith((".sa.v.weight", ".sa.v.bias")):
            found[name] = tensor
    return found


def _check_zero(name: str, k_bias: Tensor) -> None:
    if k_bias.any():
        raise I2LError(f"expected no bias of k in {name}; train with it held at zero")


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


def coder_name(name: str) -> str:
    """A name of a VAE file without wrappers."""
    return _WRAPPED.sub(lambda match: match[1] or match[2], name.removeprefix("vae."))


def check_coder(shapes: Shapes) -> CoderConfig:
    """The sizes of a VAE file, from names and shapes alone: what begins with "encoder." or "decoder.", under its names
    or those with wrappers. Other entries are ignored. Raises I2LError, by name, unless these are exactly a VAE's."""
    found = coder_shapes(shapes)
    config = CoderConfig(
        bits=_outputs(found, "encoder.conv_out"),
        base=_outputs(found, "encoder.conv_in"),
        encoder=_levels(found, "encoder.down"),
        decoder=_levels(found, "decoder.up"),
        res_blocks=len({n.split(".")[4] for n in found if n.startswith("encoder.down.0.block.")}),
    )
    expected = {name: tuple(t.shape) for name, t in Coder(config, device="meta").state_dict().items()}
    if missing := sorted(set(expected) - set(found)):
        raise I2LError(f"the VAE lacks {listed(missing)}; download its file again")
    if unknown := sorted(set(found) - set(expected)):
        raise I2LError(f"expected a VAE of Infinity, but it also has {listed(unknown)}; choose its file")
    for name, shape in found.items():
        if shape != expected[name]:
            raise I2LError(f"expected {name} of shape {expected[name]}, got {shape}; download the file again")
    return config


def coder_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        plain = coder_name(name)
        if not plain.startswith(("encoder.", "decoder.")):
            continue
        if plain in found:
            raise I2LError(f"the VAE has {plain} under two names; download its file again")
        found[plain] = tuple(shape)
    return found


def coder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checked VAE file under the names of Coder(config).state_dict()."""
    plain = {coder_name(name): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in plain.items() if name.startswith(("encoder.", "decoder."))}


def _outputs(shapes: Shapes, layer: str) -> int:
    shape = shapes.get(f"{layer}.weight")
    if shape is None or len(shape) != 4:
        raise I2LError(
            f"expected a VAE of Infinity with a convolution {layer}, got "
            f"{'none' if shape is None else shape}; choose its file"
        )
    return shape[0]


def _levels(shapes: Shapes, place: str) -> tuple[int, ...]:
    count = len({name.split(".")[2] for name in shapes if name.startswith(f"{place}.")})
    return tuple(_outputs(shapes, f"{place}.{i}.block.0.conv1") for i in range(min(count, 8)))
