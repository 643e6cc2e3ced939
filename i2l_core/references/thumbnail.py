"""A thumbnail of reference pictures, as a data URL for file metadata and web pages."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import torch
from PIL import Image

from . import Reference

SIDE = 256  # pixels
MOST = 4  # pictures, in a square of squares
_QUALITY = 85  # of the JPEG


def thumbnail(references: Sequence[Reference], side: int = SIDE) -> str:
    """The centre crops of up to four pictures in one JPEG of `side` x `side`, as a data URL (modelspec.thumbnail)."""
    shown = references[:MOST]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    cell = side // columns
    sheet = Image.new("RGB", (cell * columns, cell * rows), "white")
    for place, reference in enumerate(shown):
        sheet.paste(_square(reference, cell), (place % columns * cell, place // columns * cell))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _square(reference: Reference, side: int) -> Image.Image:
    height, width = reference.size
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    step = max(1, short // (4 * side))  # of a large picture a part of the pixels is enough
    pixels = reference.pixels[top : top + short : step, left : left + short : step]
    image = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
    return image.resize((side, side), Image.Resampling.LANCZOS)
