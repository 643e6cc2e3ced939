"""Files of caches: safetensors with tensors "double_0.k", "double_0.v", ... and what made them in the metadata.

A static template (PandaMeme) is such a file by others: one pair of tensors for each block. How its tensors are named is
not known from code, so every spelling in which a block's name and "k" or "v" stand apart is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..checks import check_entries, listed
from ..errors import I2LError
from ..files.atomic import write_new
from ..files.safetensors import FileHeader, is_copied, open_safetensors, read_tensor, shapes_and_dtypes
from .cache import KeysValues, KVCache

METADATA_KEY = "i2l"
FORMAT = "i2l-kv-cache"
VERSION = 1

_BLOCK = r"(?P<block>(?:double|single|block)_\d+)"
_WHICH = {"k": 0, "key": 0, "keys": 0, "v": 1, "value": 1, "values": 1}
_NAMES = (
    re.compile(rf"(?:.*\.)?{_BLOCK}[._](?P<which>{'|'.join(_WHICH)})"),
    re.compile(rf"(?:.*\.)?(?P<which>{'|'.join(_WHICH)})(?:_cache)?[._]{_BLOCK}"),
)


def is_cache(header: FileHeader) -> bool:
    """Whether every tensor is the keys or values of a block, (1, tokens, heads, head width)."""
    return bool(header.shapes) and all(
        _named(name) and len(shape) == 4 and shape[0] == 1 for name, shape in header.shapes.items()
    )


def load_cache(path: Path) -> KVCache:
    """Raises I2LError naming the file when it is damaged, no cache, or not finite."""
    with open_safetensors(path, "a cache of keys and values") as file:
        header = FileHeader(path, *shapes_and_dtypes(file), file.metadata() or {})
        said = _about(header.metadata)
        if not is_cache(header):
            raise I2LError(
                "expected keys and values of blocks, which it does not hold; load it where it belongs"
            )
        pairs: dict[str, dict[int, str]] = {}
        for name in header.shapes:
            block, which = _named(name) or ("", 0)
            if which in pairs.setdefault(block, {}):
                raise I2LError(f"{block} comes under two names, one of them {name}; get the original file")
            pairs[block][which] = name
        if lonely := [block for block, names in pairs.items() if len(names) < 2]:
            raise I2LError(f"keys or values are missing for {listed(sorted(lonely))}; get the original file")
        copied = is_copied(path)

        def tensor(name: str) -> torch.Tensor:
            return read_tensor(file, name) if copied else file.get_tensor(name)

        blocks: dict[str, KeysValues] = {block: (tensor(n[0]), tensor(n[1])) for block, n in pairs.items()}
        return KVCache(blocks, said.get("made_by", "") or path.stem, said.get("base_model", ""))


def save_cache(cache: KVCache, path: Path) -> Path:
    """Write a cache at `path`, or under the next free number when that exists; return where it is.

    Raises I2LError when the disk refuses. Then nothing was changed.
    """
    tensors = {}
    for block, (keys, values) in cache.blocks.items():
        for which, part in (("k", keys), ("v", values)):
            tensors[f"{block}.{which}"] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
    said = {"format": FORMAT, "version": VERSION, "made_by": cache.made_by, "base_model": cache.base_model}
    try:
        return write_new(path, save(tensors, {METADATA_KEY: json.dumps(said, ensure_ascii=False)}))
    except OSError as error:
        raise I2LError(
            f"cannot save {path}: {error}. Nothing was changed; check the folder and its space"
        ) from error


def _named(name: str) -> tuple[str, int] | None:
    """(block, 0 for keys or 1 for values) of a tensor's name."""
    for pattern in _NAMES:
        if found := pattern.fullmatch(name):
            return found["block"], _WHICH[found["which"]]
    return None


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `save_cache` wrote; nothing for the file of others."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        said = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise I2LError(f"its metadata is damaged ({error}); save it again") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise I2LError("it is no cache of keys and values, by its metadata; load it where it belongs")
    if said.get("version") != VERSION:
        raise I2LError(
            f"it was saved by another version of ComfyUI-i2L (known: {VERSION}); update ComfyUI-i2L"
        )
    said = check_entries("its metadata", said, ("format", "version", "made_by", "base_model"))
    if not all(isinstance(said[name], str) for name in ("made_by", "base_model")):
        raise I2LError("its metadata is damaged: made_by and base_model must be text; save it again")
    return said
