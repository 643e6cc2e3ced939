"""Strict reading of untrusted safetensors files, shared by the loaders of all predictor families."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checks import listed
from ..errors import I2LError, reading
from .kinds import describe_bytes

LONGEST_NAME = 512  # characters of a tensor's name; the longest real ones have 120
MOST_COPIED = 4 << 30  # bytes of a file whose tensors are copied
_LENGTH = 8  # bytes at the beginning that say how long the header is

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors names them


@contextlib.contextmanager
def open_safetensors(path: Path, expected: str = "a predictor file") -> Iterator[Any]:
    """A context with an open safetensors file. Tensors are memory-mapped: they take memory only when copied, and they
    change, or end the process, when the file is overwritten or cut. `read_tensor` copies.

    I2LErrors raised inside are prefixed with the name of the file. Raises I2LError for a name that comes twice or is
    longer than LONGEST_NAME.
    """
    try:
        try:
            with _mapped(path) as file:
                check_names(path)
                with reading(f"expected {expected}", "it is damaged", "download it again"):
                    yield file
        except UnicodeError as error:  # of the path; the library has names as UTF-8
            raise I2LError(
                f"the path of the file is not UTF-8 ({error}); rename the file or its folder"
            ) from error
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, I2LError):
                raise
            raise I2LError(f"expected {expected}, but {describe_bytes(path, error)}") from error
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error


def _mapped(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except RuntimeError as error:  # PyTorch's; damaged files raise SafetensorError
        size = f"{path.stat().st_size / 1e9:.1f} GB"
        raise I2LError(
            f"it has {size}, more than this computer's memory can map; add swap or memory"
        ) from error


def check_names(path: Path) -> None:
    """Raise I2LError for a name that comes twice, of which the library takes the last, or is longer than LONGEST_NAME,
    in which looking for numbers takes long. The file is one that the library has opened."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(length), object_pairs_hook=_once)
    if long := next((name for name in header if len(name) > LONGEST_NAME), None):
        raise I2LError(
            f"a tensor has a name of {len(long)} characters, {long[:40]}...; expected at most {LONGEST_NAME}; "
            "download it again"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise I2LError(f"its header has {twice[:120]} twice, so it is damaged; download it again")
    return found


def read_tensor(file: Any, name: str) -> Tensor:
    """A tensor of an open file in memory of its own, which outlives whatever happens to the file."""
    return file.get_tensor(name).clone()


def is_copied(path: Path) -> bool:
    """Whether all tensors of a file should be copied: larger ones stay mapped, or they would be in memory twice."""
    return path.stat().st_size <= MOST_COPIED


@dataclass(frozen=True)
class FileHeader:
    """The header of a safetensors file: names, shapes, dtypes and metadata."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]  # as safetensors names them
    metadata: Mapping[str, str]


def read_header(path: Path) -> FileHeader:
    """Read a header. Raises I2LError naming the file if it is not a complete safetensors file."""
    with open_safetensors(path) as file:
        return FileHeader(path, *shapes_and_dtypes(file), file.metadata() or {})


def shapes_and_dtypes(file: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and dtypes of all tensors of an open file, by name, from its header."""
    slices = {name: file.get_slice(name) for name in file.keys()}
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    return shapes, {name: part.get_dtype() for name, part in slices.items()}


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], of: str
) -> None:
    """Raise I2LError unless exactly the expected tensors are there, in shape. `of`: their owner, for messages."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is not expected" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} expected {shape}, got {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise I2LError(f"its tensors are not those {of}: {listed(problems)}")


def check_dtypes(found: Iterable[str], which: str) -> torch.dtype:
    """The common floating point dtype. Raises I2LError if there is none; `which` names the tensors in it."""
    kinds = set(found)
    if len(kinds) != 1 or not kinds <= set(DTYPES):
        raise I2LError(f"{which} must all be {' or '.join(DTYPES)}, got {listed(sorted(kinds))}")
    return DTYPES[kinds.pop()]


def check_finite(name: str, tensor: Tensor) -> None:
    # NaN and infinity show in the minimum or the maximum: ten times faster than testing every value
    if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise I2LError(f"{name} holds NaN or infinite values; the file is damaged or its training diverged")
