"""A safetensors file in parts, so that each part can be changed alone, and written with lies in its header."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .case import Wrong
from .values import damaged_bytes, damaged_text, damaged_tree, text, value

_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "U8": 1,
}
_SIZES |= {"BOOL": 1, "C64": 8, "F8_E8M0": 1, "U16": 2, "F99": 4}
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_PATTERNS = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x80\x7f",
    b"\x00\x00\x80\x3f",
)  # NaN, infinity, one, ...


@dataclass(frozen=True)
class Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def resized(self, dtype: str, shape: tuple[int, ...]) -> Entry:
        size = _SIZES[dtype] * math.prod(shape)
        return Entry(self.name, dtype, shape, (self.data * (size // max(len(self.data), 1) + 1))[:size])

    def numbers(self) -> Tensor:
        """Its values in float64, one after the other. For the types that torch has."""
        if not self.data:
            return torch.empty(0, dtype=torch.float64)
        return torch.frombuffer(bytearray(self.data), dtype=_TYPES[self.dtype]).double()


@dataclass(frozen=True)
class Parts:
    entries: tuple[Entry, ...]
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, content: bytes) -> Parts:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        start = 8 + length
        entries = [
            Entry(
                n,
                a["dtype"],
                tuple(a["shape"]),
                content[start + a["data_offsets"][0] : start + a["data_offsets"][1]],
            )
            for n, a in header.items()
        ]
        return cls(tuple(entries), metadata)

    def table(self) -> list[tuple[str, Any]]:
        """The header's entries in order; a list, so that names can come twice."""
        rows: list[tuple[str, Any]] = [("__metadata__", dict(self.metadata))] if self.metadata else []
        end = 0
        for entry in self.entries:
            offsets = [end, end + len(entry.data)]
            rows.append(
                (entry.name, {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets})
            )
            end += len(entry.data)
        return rows


def parts_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Parts:
    """Of a file that holds these tensors, in float32."""
    entries = [
        Entry(name, "F32", tuple(tensor.shape), tensor.detach().float().contiguous().numpy().tobytes())
        for name, tensor in tensors.items()
    ]
    return Parts(tuple(entries), metadata)


def written(parts: Parts, rows: list[tuple[str, Any]] | None = None, length: int | None = None) -> bytes:
    rows = parts.table() if rows is None else rows
    header = (
        "{" + ",".join(f"{json.dumps(name)}:{json.dumps(about)}" for name, about in rows) + "}"
    ).encode()
    return (
        struct.pack("<Q", len(header) if length is None else length)
        + header
        + b"".join(entry.data for entry in parts.entries)
    )


def mutated(rng: random.Random, parts: Parts) -> bytes:
    """Up to three changes that keep the file valid, and at times one that does not."""
    for _ in range(rng.randrange(4)):
        parts = _changed(rng, parts)
    if rng.random() < 0.7:
        return written(parts)
    rows = parts.table()
    place = rng.randrange(len(rows)) if rows else 0
    match rng.randrange(7):
        case 0 if rows:  # a name again, at times with other contents
            rows.insert(rng.randrange(len(rows) + 1), rng.choice(rows))
        case 1 if rows:
            rows[place] = (rows[place][0], damaged_tree(rng, rows[place][1]))
        case 2:
            length = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(written(parts))))
            return written(parts, length=length)
        case 3:
            return written(parts)[: rng.randrange(len(written(parts)) + 1)]
        case 4:
            return written(parts) + rng.randbytes(rng.randrange(1, 9))
        case 5:
            content = written(parts)
            end = 8 + int.from_bytes(content[:8], "little")
            header = damaged_bytes(rng, content[8:end])
            return struct.pack("<Q", len(header)) + header + content[end:]
        case _:
            return damaged_bytes(rng, written(parts))
    return written(parts, rows)


def _changed(rng: random.Random, parts: Parts) -> Parts:
    entries = list(parts.entries)
    if not entries or rng.random() < 0.2:
        metadata = dict(parts.metadata)
        key = rng.choice([*metadata, "i2l", "lora_alpha", text(rng)])
        metadata[key] = _changed_metadata(rng, metadata.get(key, ""))
        return replace(parts, metadata=metadata)
    place = rng.randrange(len(entries))
    entry = entries[place]
    match rng.randrange(7):
        case 0:
            entries[place] = replace(entry, name=rng.choice((text(rng), damaged_text(rng, entry.name))))
        case 1:
            entries[place] = entry.resized(rng.choice(list(_SIZES)), entry.shape)
        case 2:
            entries[place] = (
                entry.resized(entry.dtype, _shape(rng, entry.shape)) if entry.dtype in _SIZES else entry
            )
        case 3:
            pattern = rng.choice(_PATTERNS)
            entries[place] = replace(entry, data=(pattern * len(entry.data))[: len(entry.data)])
        case 4:
            del entries[place]
        case 5:
            entries.append(replace(entry, name=damaged_text(rng, entry.name)))
        case _:
            dtype = rng.choice(("F8_E4M3", "F8_E5M2", "C64", "F16", "BF16", "F64"))
            entries = [one.resized(dtype, one.shape) for one in entries]
    return replace(parts, entries=tuple(entries))


def _changed_metadata(rng: random.Random, found: Any) -> Any:
    found = found if isinstance(found, str) else json.dumps(found)
    if rng.random() < 0.5:
        try:
            return json.dumps(damaged_tree(rng, json.loads(found)))
        except (ValueError, RecursionError):
            pass
    return rng.choice((text(rng), damaged_text(rng, found), value(rng), str(rng.randrange(1, 64))))


def _shape(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    match rng.randrange(5):
        case 0:
            return shape[::-1]
        case 1:
            return ()
        case 2:
            return (*shape, 1)
        case 3 if shape:
            place = rng.randrange(len(shape))
            return (*shape[:place], rng.choice((0, 1, 2, 3, shape[place] + 1)), *shape[place + 1 :])
        case _:
            return shape[1:]


def same_tensors(found: Mapping[str, Tensor], content: bytes) -> None:
    """Raise Wrong unless these are all tensors of a safetensors file, with its numbers."""
    entries = {entry.name: entry for entry in Parts.of(content).entries}
    if found.keys() != entries.keys():
        raise Wrong(f"tensors differ: {sorted(found.keys() ^ entries.keys())[:4]}")
    for name, tensor in found.items():
        said = entries[name].numbers()
        if tuple(tensor.shape) != entries[name].shape or not torch.equal(tensor.double().flatten(), said):
            raise Wrong(f"{name} {tuple(tensor.shape)} is not what the file has")
