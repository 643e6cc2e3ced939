"""A data set as .tar shards in WebDataset's format, read in place: nothing is unpacked or held in memory.

Files of one sample share their name up to the first dot: 000001.jpg, 000001.json with "style", "prompt" and
optionally "content", and optionally 000001.latent.safetensors, 000001.text.safetensors. One pass over the tar
headers finds where each file is; from then on samples are read at random, so that a style may be spread over shards
and a resumed run needs no replay.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ...checks import listed
from ...errors import I2LError, reading
from ...files.fingerprint import stamp
from ..base import Texts
from .data_set import Picture, open_rgb
from .folder import picture_of, read_latent, read_row, read_tensors

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LATENT, _TEXT = "latent.safetensors", "text.safetensors"

Span = tuple[int, int]  # where in the shard a file begins, and how long it is


@dataclass(frozen=True)
class Shards:
    """`spans[i]`: number of the shard, then image, latent and text embeddings of picture i; (0, 0): there is none."""

    shards: Sequence[Path]
    pictures: Sequence[Picture]
    spans: Sequence[tuple[int, Span, Span, Span]]

    def open(self, index: int) -> Image.Image:
        return open_rgb(io.BytesIO(self._read(index, 1)), self.pictures[index].name)

    def version(self, index: int) -> str:
        shard, about = self.shards[self.spans[index][0]], self.shards[self.spans[index][0]].stat()
        return f"{shard.resolve()} {stamp(about)} {self.spans[index][1]}"

    def latent(self, index: int) -> Tensor | None:
        content = self._read(index, 2)
        return read_latent(content, self.pictures[index].name) if content else None

    def texts(self, index: int) -> Texts | None:
        content = self._read(index, 3)
        return read_tensors(content, self.pictures[index].name) if content else None

    def _read(self, index: int, part: int) -> bytes:
        shard, span = self.shards[self.spans[index][0]], self.spans[index][part]
        start, length = span  # type: ignore[misc]
        if not length:
            return b""
        with (
            reading(self.pictures[index].name, f"cannot read {shard}", "copy it again"),
            shard.open("rb") as file,
        ):
            file.seek(start)
            content = file.read(length)
        if len(content) != length:
            raise I2LError(f"{self.pictures[index].name}: {shard.name} ends too early; copy it again")
        return content


def open_shards(folder: str | Path) -> Shards:
    """Read the headers and descriptions of every .tar in a folder. Raises I2LError naming shard and sample."""
    with reading(f"cannot read the folder of shards {folder}", "expected a folder", "check its path"):
        shards = sorted(Path(folder).glob("*.tar"))
    if not shards:
        raise I2LError(f"there is no .tar shard in {folder}")
    pictures, spans = [], []
    for number, shard in enumerate(shards):
        with reading(shard.name, "it is not an uncompressed .tar, or is damaged", "pack or copy it again"):
            with tarfile.open(shard, "r:") as tar:
                for key, files in _samples(tar).items():
                    picture, found = _sample(tar, shard.name, key, files)
                    pictures.append(picture)
                    spans.append((number, *found))
    return Shards(shards, pictures, spans)


def _samples(tar: tarfile.TarFile) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Key of a sample -> extension -> file, in the order of the shard."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        if member.size < 0:
            raise I2LError(
                f"{Path(str(tar.name)).name}: {member.name} has a size of {member.size} bytes; copy it again"
            )
        if member.isreg() and not member.issparse():
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[extension.lower()] = member
    return samples


def _sample(
    tar: tarfile.TarFile, shard: str, key: str, files: dict[str, tarfile.TarInfo]
) -> tuple[Picture, tuple[Span, Span, Span]]:
    name = f"{shard} sample {key}"
    images = [files[extension] for extension in _IMAGES if extension in files]
    if len(images) != 1 or "json" not in files:
        raise I2LError(f"{name}: expected one picture ({listed(_IMAGES)}) and one .json, got {listed(files)}")
    about = tar.extractfile(files["json"])
    assert about is not None
    row = read_row(about.read(), f"{name}.json", ("style", "prompt"), ("content",))
    latent, text = files.get(_LATENT), files.get(_TEXT)
    return picture_of(row, name), (_span(images[0]), _span(latent), _span(text))


def _span(member: tarfile.TarInfo | None) -> Span:
    return (member.offset_data, member.size) if member else (0, 0)
