"""Read references from picture files, where ComfyUI's Load Image is not available."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files.pictures import open_picture, upright
from . import Reference, check_size

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})


def read_reference(path: Path, weight: float = 1.0, largest: int | None = None) -> Reference:
    """Read one picture file; EXIF rotation is applied, and an animation gives its first frame.

    `largest`: the longest side in pixels; a larger picture is scaled down.
    Raises I2LError naming the file when it cannot be read, or is too small, too narrow, or no picture.
    """
    with open_picture(path, str(path), "save it as PNG, JPEG or WebP and try again") as image:
        if largest is not None:
            image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        picture = _values(upright(image))
    check_size(str(path), *picture.shape[:2])
    return Reference(picture, weight)


def _values(image: Image.Image) -> Tensor:
    """(H, W, 1, 3 or 4): bytes, a quarter of what floats would take, or floats 0..1 of a gray of more than 8 bits."""
    if image.mode == "F":
        return torch.from_numpy(np.array(image)[..., None])
    alpha = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return torch.from_numpy(np.array(image.convert("RGBA" if alpha or image.mode == "RGBA" else "RGB")))
