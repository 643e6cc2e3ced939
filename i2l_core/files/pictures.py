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
            with Image.open(source, formats=[one for one in FORMATS if one in Image.OPEN]) as image:
                width, height = image.size
                if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
                    raise I2LError(
                        f"the picture has {width}x{height} pixels, more than {MOST_PIXELS // 1_000_000} million or a "
                        f"side of {LONGEST_SIDE}; make it smaller"
                    )
                yield image
        except I2LError as error:
            raise I2LError(f"{name}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Decoded and turned as EXIF says; gray of 16 bits or of floats 0..1 as float32 in mode F, 0..1.

    Raises I2LError for floats beyond 0..1, whose white nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of gray
        return Image.fromarray(np.asarray(image).astype(np.float32) / 65535, "F")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.size and 0 <= values.min() and values.max() <= 1):  # NaN compares false
            raise I2LError(
                f"it holds floating point values from {values.min():g} to {values.max():g}, expected 0 to 1; save it "
                "as PNG with 8 or 16 bits"
            )
    return image
