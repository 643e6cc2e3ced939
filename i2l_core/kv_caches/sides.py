"""A file of caches for both sides of CFG: safetensors `SIDE.BLOCK.k` and `.v` and metadata.

    i2l_kv_cache   {"version": 1, "made_by": "...", "shared": true}

`shared`: the negative side has the same cache, so only `positive.` is in the file. A side may be missing otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..checks import check_entries, listed
from ..errors import I2LError
from ..files.atomic import write_new_by
from ..files.safetensors import open_safetensors
from .cache import KVCache

METADATA = "i2l_kv_cache"
VERSION = 1
SIDES = ("positive", "negative")


@dataclass(frozen=True, eq=False)
class Sides:
    """Caches for the sides of CFG; the same object where they are equal, None where a side has none."""

    positive: KVCache | None
    negative: KVCache | None
    made_by: str = ""


def is_cache_file(metadata: Mapping[str, str]) -> bool:
    return METADATA in metadata


def save_sides(sides: Sides, path: Path) -> Path:
    """Write a new file at `path` or under its next free number; returns its path. Tensors keep their dtype.

    Raises I2LError when there is nothing to save or no room for it; nothing has changed then.
    """
    if sides.positive is None and sides.negative is None:
        raise I2LError(f"{sides.made_by} made no cache that could be saved")
    shared = sides.positive is sides.negative
    given = (
        {"positive": sides.positive}
        if shared
        else dict(zip(SIDES, (sides.positive, sides.negative), strict=True))
    )
    tensors: dict[str, Tensor] = {}
    for side, cache in given.items():
        for name, pair in (cache.blocks if cache else {}).items():
            for part, tensor in zip("kv", pair, strict=True):
                tensors[f"{side}.{name}.{part}"] = tensor.to("cpu").contiguous()
    about = {"version": VERSION, "made_by": sides.made_by, "shared": shared}
    try:
        return write_new_by(path, lambda file: save_file(tensors, file, {METADATA: json.dumps(about)}))
    except OSError as error:
        raise I2LError(
            f"cannot save {path.name}: {error.strerror}; free some space or choose another folder"
        ) from error


def load_sides(path: Path) -> Sides:
    """Raises I2LError naming the file when it is damaged, not finite, of another kind, or of a newer version."""
    with open_safetensors(path, "a template cache") as file:
        about = _about((file.metadata() or {}).get(METADATA, ""))
        blocks: dict[str, dict[str, dict[str, Tensor]]] = {side: {} for side in SIDES}
        strange = []
        for key in file.keys():
            side, _, rest = key.partition(".")
            name, _, part = rest.partition(".")
            if side in blocks and part in ("k", "v"):
                blocks[side].setdefault(name, {})[part] = file.get_tensor(key)
            else:
                strange.append(key)
        if strange:
            raise I2LError(f"its tensors are not those of a template cache: {listed(strange)}")
        sides = {side: _cache(found, about["made_by"]) for side, found in blocks.items()}
        if about["shared"] and (sides["positive"] is None or sides["negative"] is not None):
            raise I2LError("it says that both sides are equal, but it does not hold exactly the positive one")
        if all(cache is None for cache in sides.values()):
            raise I2LError("it holds no keys and values")
        negative = sides["positive"] if about["shared"] else sides["negative"]
        return Sides(sides["positive"], negative, about["made_by"])


def _cache(found: Mapping[str, Mapping[str, Tensor]], made_by: str) -> KVCache | None:
    if not found:
        return None
    if alone := [name for name, pair in found.items() if len(pair) != 2]:
        raise I2LError(f"block {listed(alone)} lacks its keys or its values")
    return KVCache({name: (pair["k"], pair["v"]) for name, pair in found.items()}, made_by)


def _about(text: str) -> dict[str, Any]:
    try:
        about = check_entries(METADATA, json.loads(text), ("version", "made_by", "shared"))
    except json.JSONDecodeError as error:
        raise I2LError(f"its metadata {METADATA} is not valid: {error.msg}") from error
    if about["version"] != VERSION:
        raise I2LError(f"it has version {about['version']}, known is {VERSION}; update ComfyUI-i2L")
    if not isinstance(about["made_by"], str) or not isinstance(about["shared"], bool):
        raise I2LError(f"its metadata {METADATA} is not valid; save it again")
    return about
