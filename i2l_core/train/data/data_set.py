"""The protocol of a data set (pictures with style, prompt and content), and its split into styles."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ...checks import listed
from ...errors import I2LError
from ...files.pictures import open_picture, upright
from ..base import Texts


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of a data set. Pictures of a style with equal `content` are never reference and target of one pair."""

    style: str
    content: str
    prompt: str
    name: str  # where it is, for messages


class DataSet(Protocol):
    """Pictures in a fixed order, read at random and one at a time."""

    @property
    def pictures(self) -> Sequence[Picture]: ...

    def open(self, index: int) -> Image.Image:
        """The picture as RGB. Raises I2LError naming the row when it is broken or missing."""
        ...

    def version(self, index: int) -> str:
        """Changes when the file of the picture does."""
        ...

    def latent(self, index: int) -> Tensor | None:
        """(C, h, w) as the host's VAE Encode gives it, where the data set brings it."""
        ...

    def texts(self, index: int) -> Texts | None:
        """The text embeddings of the picture's prompt, where the data set brings them."""
        ...


@dataclass(frozen=True)
class Styles:
    """The styles of a data set that may be drawn: for each, the numbers of its pictures."""

    data: DataSet
    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise I2LError("the data set has no style that can be trained on")


def split_styles(data: DataSet, unseen: float, small_styles: str) -> tuple[Styles, Styles | None, int]:
    """(styles for training, styles for measuring or None, how many were dropped for having too few contents).

    The fraction `unseen` is chosen by a hash of the name, so it stays when the data set grows. Raises I2LError
    naming styles with fewer than two contents, unless `small_styles` is "drop".
    """
    members: dict[str, list[int]] = {}
    for index, picture in enumerate(data.pictures):
        members.setdefault(picture.style, []).append(index)
    small = [s for s, indices in members.items() if len({data.pictures[i].content for i in indices}) < 2]
    if small and small_styles != "drop":
        raise I2LError(
            f"{len(small)} of {len(members)} styles have fewer than two different contents, so references and "
            f'target would show the same: {listed(small)}. Add pictures, or set [data] small_styles = "drop"'
        )
    for style in small:
        del members[style]
    measured = {s for s in members if zlib.crc32(s.encode()) % 10_000 < 10_000 * unseen}
    sides = []
    for keep in (lambda s: s not in measured, lambda s: s in measured):
        chosen = {s: tuple(indices) for s, indices in members.items() if keep(s)}
        sides.append((tuple(chosen), tuple(chosen.values())))
    train = Styles(data, *sides[0])
    return train, Styles(data, *sides[1]) if measured else None, len(small)


def data_fingerprint(pictures: Sequence[Picture]) -> str:
    """Changes when a row is added, removed, moved or edited."""
    digest = hashlib.sha256()
    for p in pictures:
        digest.update(f"{p.style}\0{p.content}\0{p.prompt}\0{p.name}\n".encode())
    return digest.hexdigest()[:16]


def open_rgb(source: Path | IO[bytes], name: str) -> Image.Image:
    """A decoded RGB picture, upright, alpha over white. Raises I2LError naming it when it cannot be decoded whole."""
    problem = "the picture is broken or missing"
    with open_picture(source, name, "repair or remove the row", problem) as file:
        picture = upright(file)
        if picture.mode == "F":
            picture = Image.fromarray((np.asarray(picture) * 255).round().astype(np.uint8))
        if picture.has_transparency_data:
            over = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(over, picture.convert("RGBA"))
        return picture.convert("RGB")


def cover(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Scale a picture to cover (height, width) and crop its centre."""
    scale = max(width / picture.width, height / picture.height)
    if scale != 1:
        size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
