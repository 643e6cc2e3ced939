"""Value templates: a number -> keys and values (Brightness, Sharpness, Age; three numbers: SoftRGB).

For each block, and for keys and values apart, DiffSynth's SingleValueEncoder
(examples/flux2/model_training/scripts/brightness):

    waves(factor value) -> Linear, SiLU, Linear -> one vector, added to a learned table of tokens

Everything is computed in the type of the file, as there: bfloat16 rounds the number too. It is two products of a vector
with each matrix, so it runs on the CPU, block by block from the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import listed
from ..errors import I2LError
from ..files.safetensors import FileHeader, check_dtypes, check_finite, open_safetensors, read_tensor
from .cache import BLOCK, KVCache

# the name before proj_k, if any, tells several values apart: how SoftRGB names its three is inferred
_NAME = re.compile(
    r"(?:(?P<value>[\w.]+)\.)?proj_(?P<which>[kv])\.(?P<block>(?:double|single)_\d+)\."
    r"(?P<part>prefer_value_embedder\.[02]\.(?:weight|bias)|positional_embedding)"
)
_PARTS = {
    "prefer_value_embedder.0.weight": ("wide", "waves"),
    "prefer_value_embedder.0.bias": ("wide",),
    "prefer_value_embedder.2.weight": ("wide", "wide"),
    "prefer_value_embedder.2.bias": ("wide",),
    "positional_embedding": ("tokens", "wide"),
}
_HEAD_DIM = 128  # of every released FLUX.2; a file of another says so in its metadata, as head_dim


@dataclass(frozen=True)
class ValueTemplate:
    """`values`: names before proj_k, one for each number it takes, in order ("" for the only one)."""

    path: Path
    values: tuple[str, ...]
    blocks: tuple[str, ...]
    width: int
    waves: int
    tokens: int
    head_dim: int
    dtype: torch.dtype

    def make(self, numbers: Sequence[float], factor: float, made_by: str, base_model: str = "") -> KVCache:
        """A cache for the numbers; that of several is one of all their tokens.

        Raises I2LError for another count of numbers, for one that is not finite, and for a file that holds NaN.
        """
        if len(numbers) != len(self.values) or not all(math.isfinite(number) for number in numbers):
            given = ", ".join(f"{n:g}" for n in numbers)
            raise I2LError(f"{made_by}: expected {len(self.values)} finite numbers, got {given or 'none'}")
        blocks = {}
        with open_safetensors(self.path, "a template") as file, torch.no_grad():
            for block in self.blocks:
                keys, values = (
                    torch.cat(
                        [
                            self._tokens(file, f"{name}.{which}.{block}".lstrip("."), number, factor)
                            for name, number in zip(self.values, numbers, strict=True)
                        ],
                        1,
                    )
                    for which in ("proj_k", "proj_v")
                )
                blocks[block] = keys, values
        return KVCache(blocks, made_by, base_model)

    def _tokens(self, file: Any, place: str, number: float, factor: float) -> Tensor:
        """(1, tokens, heads, head_dim)"""

        def tensor(part: str) -> Tensor:
            found = read_tensor(file, f"{place}.{part}")  # aligned in memory, or sums come out otherwise
            check_finite(f"{place}.{part}", found)
            return found

        waves = self._waves(torch.tensor([number]).to(self.dtype) * factor)
        h = F.linear(waves, tensor("prefer_value_embedder.0.weight"), tensor("prefer_value_embedder.0.bias"))
        h = F.linear(
            F.silu(h), tensor("prefer_value_embedder.2.weight"), tensor("prefer_value_embedder.2.bias")
        )
        return (h + tensor("positional_embedding")).view(1, self.tokens, -1, self.head_dim)

    def _waves(self, number: Tensor) -> Tensor:
        half = self.waves // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
        angles = number[:, None].float() * torch.exp(exponent)[None]
        return torch.cat([angles.cos(), angles.sin()], -1).to(self.dtype)


def recognise_value(header: FileHeader) -> ValueTemplate | None:
    """None when it is no value template. Raises I2LError when it is one whose tensors do not fit each other."""
    found = {name: match for name in header.shapes if (match := _NAME.fullmatch(name))}
    if not found:
        return None
    values = tuple(dict.fromkeys(match["value"] or "" for match in found.values()))
    blocks = tuple(dict.fromkeys(match["block"] for match in found.values()))
    expected = {
        f"{value}.proj_{which}.{block}.{part}".lstrip("."): sizes
        for value in values
        for which in "kv"
        for block in blocks
        for part, sizes in _PARTS.items()
    }
    missing = [f"{name} is missing" for name in expected if name not in header.shapes]
    strange = [f"{name} is not expected" for name in header.shapes if name not in expected]
    if missing or strange:
        raise I2LError(f"it is a value template, but {listed(missing + strange)}; download it again")
    sizes: dict[str, int] = {}
    for name, sides in expected.items():
        shape = header.shapes[name]
        if len(shape) != len(sides) or any(
            sizes.setdefault(side, n) != n for side, n in zip(sides, shape, strict=True)
        ):
            raise I2LError(f"it is a value template, but {name} has the shape {shape}; download it again")
    head_dim = _head_dim(header.metadata)
    if sizes["wide"] % head_dim or sizes["waves"] % 2 or not all(BLOCK.fullmatch(block) for block in blocks):
        raise I2LError(
            f"it is a value template of width {sizes['wide']}, which is not made of heads of {head_dim}; it is not for "
            "FLUX.2"
        )
    dtype = check_dtypes(header.dtypes.values(), "its tensors")
    return ValueTemplate(
        header.path, values, blocks, sizes["wide"], sizes["waves"], sizes["tokens"], head_dim, dtype
    )


def _head_dim(metadata: Mapping[str, str]) -> int:
    text = metadata.get("head_dim", "")
    return (
        int(text)
        if text.isascii() and text.isdigit() and len(text) < 5 and 0 < int(text) <= 1024
        else _HEAD_DIM
    )
