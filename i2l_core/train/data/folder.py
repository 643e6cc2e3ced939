"""A data set as a .jsonl file with pictures in the same folder.

    {"style": "ink-0042", "image": "images/0001.jpg", "prompt": "a cat on a stone"}

Optional: "content", what the picture shows, where prompts do not distinguish it; "latent" and "text", .safetensors
files with precomputed encodings (docs/training.md). Paths are relative to the .jsonl file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ...checks import check_entries, check_text, shown
from ...errors import I2LError, reading
from ...files.fingerprint import stamp
from ..base import Texts
from .data_set import Picture, open_rgb

REQUIRED, OPTIONAL = ("style", "image", "prompt"), ("content", "latent", "text")
LATENT = "latent"  # the tensor in a file of a latent


@dataclass(frozen=True)
class Folder:
    """`files[i]`: path of the image, the latent and the text embeddings of picture i, empty where there is none."""

    root: Path
    pictures: Sequence[Picture]
    files: Sequence[tuple[str, str, str]]

    def open(self, index: int) -> Image.Image:
        path = self.root / self.files[index][0]
        return open_rgb(path, self.pictures[index].name)

    def version(self, index: int) -> str:
        path = self.root / self.files[index][0]
        with reading(self.pictures[index].name, "the picture is missing", "repair or remove the row"):
            return f"{path.resolve()} {stamp(path.stat())}"

    def latent(self, index: int) -> Tensor | None:
        name = self.files[index][1]
        return read_latent(self._bytes(name, index), self.pictures[index].name) if name else None

    def texts(self, index: int) -> Texts | None:
        name = self.files[index][2]
        return read_tensors(self._bytes(name, index), self.pictures[index].name) if name else None

    def _bytes(self, name: str, index: int) -> bytes:
        with reading(self.pictures[index].name, f"cannot read {name}", "repair or remove the row"):
            return (self.root / name).read_bytes()


def open_folder(path: str | Path) -> Folder:
    """Read the rows, not the pictures. Raises I2LError naming file and line."""
    path = Path(path)
    pictures, files = [], []
    with reading(
        f"cannot read the data set {path}", "expected a .jsonl file in UTF-8", "check its name, save it again"
    ):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = read_row(line, f"{path.name} line {number}", REQUIRED, OPTIONAL)
                    pictures.append(picture_of(row, f"{path.name} line {number} ({row['image']})"))
                    files.append((row["image"], row.get("latent", ""), row.get("text", "")))
    if not pictures:
        raise I2LError(f"{path.name} has no rows")
    return Folder(path.parent, pictures, files)


def read_row(
    line: str | bytes, where: str, required: Sequence[str], optional: Sequence[str]
) -> Mapping[str, str]:
    """One JSON object of texts. Raises I2LError saying `where`."""
    try:
        row = check_entries(where, json.loads(line), required, optional)
    except (ValueError, RecursionError) as error:
        if isinstance(error, I2LError):
            raise
        raise I2LError(f"{where} is not a JSON object: {error}") from error
    for name, value in row.items():
        if not isinstance(value, str) or (not value and name in ("style", "image")):
            raise I2LError(f"{where}: {name} must be a text, got {shown(value)}")
        check_text(f"{where}: {name}", value)
    return row


def picture_of(row: Mapping[str, Any], name: str) -> Picture:
    return Picture(row["style"], row.get("content") or row["prompt"], row["prompt"], name)


def read_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """All tensors of a .safetensors file. Raises I2LError naming the picture."""
    try:
        return load(content)
    except SafetensorError as error:
        raise I2LError(f"{name}: its latent or text file is damaged: {error}") from error


def read_latent(content: bytes, name: str) -> Tensor:
    """(C, h, w); a leading dimension of one is dropped. Raises I2LError naming the picture."""
    tensors = read_tensors(content, name)
    latent = tensors.get(LATENT)
    if latent is None:
        raise I2LError(f"{name}: its latent file has no tensor {LATENT!r}")
    return latent[0] if latent.ndim == 4 and len(latent) == 1 else latent
