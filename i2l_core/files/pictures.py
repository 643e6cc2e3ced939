"""Picture files that nobody vouches for: named formats, sizes checked before anything is decoded, one kind of error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from ..errors import I2LError, reading

# Pillow goes by content and not by the name: EPS under the name .png would start Ghostscript
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MOST_PIXELS = 90_000_000  # 270 MB once decoded
LONGEST_SIDE = 65_535
# A file of at most 1 MB is decoded within 256 MB: more pixels than SMALL only where the file has a byte for each 40
SMALL = 16_000_000
PIXELS_OF_BYTE = 40


@contextlib.contextmanager
def open_picture(
    source: Path | IO[bytes], name: str, cure: str, problem: str = "expected a picture"
) -> Iterator[Image.Image]:
    """A picture whose size is known and whose pixels are not decoded yet.

    Whatever goes wrong inside, while its pixels are decoded too, becomes one I2LError with `name`, `problem`, the
    reason and `cure`. An I2LError gets the name in front.
    """
    with reading(name, problem, cure):
        try:
            Image.init()
            with _opened(source) as file, Image.open(file, formats=_readable()) as image:
                width, height = image.size
                if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
                    raise I2LError(
                        f"the picture has {width}x{height} pixels, more than {MOST_PIXELS // 1_000_000} million or a "
                        f"side of {LONGEST_SIDE}; make it smaller"
                    )
                size = _size(file)
                if width * height > max(SMALL, PIXELS_OF_BYTE * size):
                    raise I2LError(
                        f"the picture has {width}x{height} pixels in a file of {size} bytes, so nearly all of "
                        "it is empty; make it smaller"
                    )
                yield image
        except I2LError as error:
            raise I2LError(f"{name}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Decoded and turned as EXIF says; gray of 16 bits or of floats 0..1 as float32 in mode F, 0..1.

    Raises I2LError for whole numbers beyond 16 bits and for floats beyond 0..1, whose white nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of gray, or 32 that may hold no more
        values = np.asarray(image)
        if not (values.size and values.min() >= 0 and values.max() <= 65535):
            raise I2LError(
                f"it holds gray values from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535; save it as "
                "PNG with 8 or 16 bits"
            )
        return Image.fromarray(values.astype(np.float32) / 65535, "F")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.size and 0 <= values.min() and values.max() <= 1):  # NaN compares false
            raise I2LError(
                f"it holds floating point values from {values.min():g} to {values.max():g}, expected 0 to 1; save it "
                "as PNG with 8 or 16 bits"
            )
    return image


def _opened(source: Path | IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Not by its name: Pillow maps some files that it opens by name, scrambles mapped TIFFs that EXIF turns (Pillow
    13.0), and the process ends when a mapped file is cut."""
    return source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source)


def _readable() -> list[str]:
    return [one for one in FORMATS if one in Image.OPEN]


def _size(file: IO[bytes]) -> int:
    """In bytes."""
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(place)
    return size
