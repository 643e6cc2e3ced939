"""What a template is by its weights alone: no program of anyone's is needed for these three kinds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import I2LError
from ..files.safetensors import FileHeader, read_header
from .dit import DitTemplate, recognise_dit
from .static import is_cache
from .value import ValueTemplate, recognise_value


@dataclass(frozen=True)
class StaticTemplate:
    """A file that is a cache itself: it takes nothing."""

    path: Path
    tokens: int
    blocks: int


Kind = ValueTemplate | StaticTemplate | DitTemplate


def recognise_template(path: Path) -> Kind | None:
    """By names and shapes in the header; nothing is read beside it. None: of no such kind.

    Raises I2LError naming the file when it is damaged, or nearly of a kind.
    """
    header = read_header(path)
    try:
        return recognise_value(header) or recognise_dit(header) or _static(header)
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error


def _static(header: FileHeader) -> StaticTemplate | None:
    if not is_cache(header):
        return None
    return StaticTemplate(
        header.path, max(shape[1] for shape in header.shapes.values()), len(header.shapes) // 2
    )
