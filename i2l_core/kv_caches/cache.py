"""A cache of keys and values as an immutable value.

    K' = [K; K_c]     V' = [V; V_c]     out = softmax(Q K'^T / sqrt(d)) V'

K are the model's own keys after normalisation and rotation; K_c is not rotated again. DiffSynth, models/flux2_dit.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..checks import listed, shown
from ..errors import I2LError
from ..files.safetensors import check_finite

BLOCK = re.compile(r"(double|single|block)_(0|[1-9]\d{0,3})")

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class KVCache:
    """Block name ("double_0", "single_19") -> keys and values, (1, T, heads, head_dim) each.

    T may differ between blocks, and blocks may be missing: those see nothing more. `made_by`: the template, for people.
    `base_model`: id of the base model, empty where it is not known. Raises I2LError for names that are no blocks, for
    shapes that do not belong together, for other than one floating point type, and for NaN or infinity.
    """

    blocks: Mapping[str, KeysValues]
    made_by: str = ""
    base_model: str = ""

    def __post_init__(self) -> None:
        who = self.made_by or "a cache of keys and values"
        if not self.blocks:
            raise I2LError(f"{who}: it holds no block; make it again")
        if strange := [shown(name) for name in self.blocks if not _is_block(name)]:
            raise I2LError(f"{who}: expected blocks named double_0, single_0, ..., got {listed(strange)}")
        layouts = set()
        for name, pair in self.blocks.items():
            layouts.add(_layout(who, name, pair))
        if len(layouts) > 1:
            found = ", ".join(f"{heads} x {width} {kind}" for heads, width, kind in sorted(layouts, key=str))
            raise I2LError(
                f"{who}: its blocks differ in heads, head width or type ({found}); it is damaged, make it again"
            )
        object.__setattr__(self, "blocks", MappingProxyType(dict(self.blocks)))

    @property
    def heads(self) -> int:
        return next(iter(self.blocks.values()))[0].shape[2]

    @property
    def head_dim(self) -> int:
        return next(iter(self.blocks.values()))[0].shape[3]

    @property
    def tokens(self) -> int:
        """Of the block with most."""
        return max(keys.shape[1] for keys, _ in self.blocks.values())

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.blocks.values())

    def count(self, kind: str) -> int:
        """How many blocks of a kind ("double", "single") a network must have: one more than the highest index."""
        indices = [int(name.removeprefix(f"{kind}_")) for name in self.blocks if name.startswith(f"{kind}_")]
        return max(indices) + 1 if indices else 0

    def __str__(self) -> str:
        return f"{self.tokens} tokens in {len(self.blocks)} blocks, {self.nbytes / 1e6:.0f} MB"


def merge(caches: Sequence[KVCache]) -> KVCache:
    """One cache of all tokens, concatenated in each block over the caches that have it.

    Their order has no effect on a picture. The same cache twice is not the same as once: log 2 is added to its logits.
    Raises I2LError when there is none, and when their heads or types differ.
    """
    if not caches:
        raise I2LError("there is no cache to merge; give at least one")
    blocks: dict[str, list[KeysValues]] = {}
    for cache in caches:
        for name, pair in cache.blocks.items():
            blocks.setdefault(name, []).append(pair)
    layouts = {(cache.heads, cache.head_dim) for cache in caches}
    if len(layouts) > 1:
        raise I2LError("caches of different base models cannot be used together; use those of one base model")
    if len(types := {keys.dtype for cache in caches for keys, _ in cache.blocks.values()}) > 1:
        raise I2LError(
            f"caches of different types ({listed(sorted(map(str, types)))}) cannot be merged; convert them"
        )
    return KVCache(
        {name: _joined(pairs) for name, pairs in blocks.items()},
        ", ".join(cache.made_by for cache in caches if cache.made_by),
        next((cache.base_model for cache in caches if cache.base_model), ""),
    )


def _joined(pairs: Sequence[KeysValues]) -> KeysValues:
    return torch.cat([k for k, _ in pairs], 1), torch.cat([v for _, v in pairs], 1)


def _is_block(name: object) -> bool:
    return isinstance(name, str) and BLOCK.fullmatch(name) is not None


def _layout(who: str, name: str, pair: KeysValues) -> tuple[int, int, torch.dtype]:
    """(heads, head_dim, dtype) of a block."""
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise I2LError(f"{who}: expected keys and values for {name}, got {shown(pair)}")
    keys, values = pair
    shapes = f"keys {tuple(keys.shape)}, values {tuple(values.shape)}"
    if keys.ndim != 4 or keys.shape != values.shape or keys.shape[0] != 1 or 0 in keys.shape:
        raise I2LError(
            f"{who}: {name} must be two tensors (1, tokens, heads, head width) alike, got {shapes}"
        )
    if not keys.is_floating_point() or keys.dtype != values.dtype:
        raise I2LError(
            f"{who}: {name} must be of one floating point type, got {keys.dtype} and {values.dtype}"
        )
    for kind, part in (("keys", keys), ("values", values)):
        try:
            check_finite(f"{name}, {kind},", part.float() if part.dtype.itemsize == 1 else part)
        except I2LError as error:
            raise I2LError(f"{who}: {error}") from error
    return keys.shape[2], keys.shape[3], keys.dtype
