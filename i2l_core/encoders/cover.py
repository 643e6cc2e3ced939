"""Preprocessing of the encoders of i2L version 1: scale a picture to cover a square and crop it.

All in bytes, resized by Pillow (bilinear, antialiased): bit for bit the same as the reference implementation.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..references import bytes_of


def cover(pixels: Tensor, side: int) -> Tensor:
    """(H, W, 3) floats 0..1 of any size -> (3, side, side) uint8, the middle of the picture, on the CPU."""
    picture = Image.fromarray(bytes_of(pixels).numpy())
    width, height = picture.size
    scale = max(side / width, side / height)
    width, height = round(width * scale), round(height * scale)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    picture = picture.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).contiguous()  # HWC -> CHW
