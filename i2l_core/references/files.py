"""Read references from picture files, where ComfyUI's Load Image is not available."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import I2LError
from ..files.pictures import open_picture, upright
from . import Reference, references_with

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})


def read_reference(path: Path, weight: float = 1.0, largest: int | None = None) -> Reference:
    """Read one picture file; EXIF rotation is applied, and an animation gives its first frame.

    `largest`: the longest side in pixels; a larger picture is scaled down.
    Raises I2LError naming the file when it cannot be read, or is too small, too narrow, or no picture.
    """
    with open_picture(path, str(path), "save it as PNG, JPEG or WebP and try again") as image:
        if largest is not None:
            image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        pixels = _floats(upright(image))
    try:
        return references_with(pixels, weight)[0]
    except I2LError as error:
        raise I2LError(f"{path}: {str(error).removeprefix('image: ')}") from error


def _floats(image: Image.Image) -> Tensor:
    """An IMAGE: (1, H, W, 1, 3 or 4), floats 0..1."""
    if image.mode == "F":
        values = np.array(image)[..., None]
    else:
        alpha = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
        values = np.asarray(image.convert("RGBA" if alpha or image.mode == "RGBA" else "RGB"))
        values = values.astype(np.float32) / 255
    return torch.from_numpy(values)[None]
