"""Static templates (PandaMeme): a file that is a cache itself, one pair of tensors for each block.

How its tensors are named is not known from code, so every spelling in which a block's name and "k" or "v" stand apart
is read. Files of our own are in `sides`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..checks import listed
from ..errors import I2LError
from ..files.safetensors import FileHeader, is_copied, open_safetensors, read_tensor, shapes_and_dtypes
from .cache import KeysValues, KVCache

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
        return KVCache(blocks, path.stem)


def _named(name: str) -> tuple[str, int] | None:
    """(block, 0 for keys or 1 for values) of a tensor's name."""
    for pattern in _NAMES:
        if found := pattern.fullmatch(name):
            return found["block"], _WHICH[found["which"]]
    return None
