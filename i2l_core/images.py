"""IMAGE batches from sockets -> single reference pictures, each of its own size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import I2LError

MIN_SIDE = 8  # pixels; below this a picture shows no style
MAX_ASPECT = 16  # longer side over shorter side
GRAY = 128 / 255  # the neutral picture of the paper, section 3.4


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference picture.

    `pixels`: (H, W, 3) float32, 0..1. `hash`: sha256 of size and pixels in hex; equal pictures, equal hashes.
    """

    pixels: Tensor
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.pixels.detach().to("cpu", torch.float32).contiguous()
        digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]};".encode())
        digest.update(pixels.numpy().tobytes())
        object.__setattr__(self, "hash", digest.hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels"""
        return self.pixels.shape[0], self.pixels.shape[1]


def references_from(batches: Mapping[str, Tensor | None] | Sequence[Tensor | None]) -> list[Reference]:
    """Every picture of every batch, in order.

    `batches`: IMAGE tensors (B, H, W, C), floats 0..1, C = 1, 3 or 4; by input name, or in order as image0,
    image1, ... None is an input that is not connected. Alpha is composited over white, one channel is
    repeated, values outside 0..1 are clamped.

    Raises I2LError naming the input ("images.image1", and which picture of a batch) when there is no picture
    at all, a batch is empty or not an image, or a picture is too small, too narrow or not finite.
    """
    if not isinstance(batches, Mapping):
        batches = {f"image{i}": batch for i, batch in enumerate(batches)}
    references = []
    for name, batch in batches.items():
        if batch is not None:
            references += _split(f"images.{name}", batch)
    if not references:
        raise I2LError("images: expected at least one reference picture, got none; connect an image")
    return references


def gray(like: Reference | tuple[int, int]) -> Reference:
    """The neutral picture: 128/255 everywhere, of the size of `like` (or (height, width))."""
    height, width = like.size if isinstance(like, Reference) else like
    return Reference(torch.full((height, width, 3), GRAY))


def _split(name: str, batch: Tensor) -> list[Reference]:
    shape = tuple(batch.shape)
    if batch.ndim != 4 or not batch.is_floating_point():
        raise I2LError(
            f"{name}: expected an IMAGE, floats (batch, height, width, channels), got {batch.dtype} {shape}"
        )
    count, height, width, channels = shape
    if count == 0:
        raise I2LError(f"{name}: expected at least one picture, got an empty batch")
    if channels not in (1, 3, 4):
        raise I2LError(f"{name}: expected 1, 3 or 4 channels (gray, RGB, RGBA), got {channels}")
    if min(height, width) < MIN_SIDE:
        raise I2LError(
            f"{name}: the picture is {width}x{height}; a reference needs at least {MIN_SIDE} pixels a side"
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise I2LError(
            f"{name}: the picture is {width}x{height}; a reference may be at most {MAX_ASPECT} times as long "
            "as wide, crop it first"
        )
    references = []
    for i, picture in enumerate(batch):
        if not torch.isfinite(picture).all():
            where = f"{name} (picture {i + 1} of {count})" if count > 1 else name
            raise I2LError(f"{where}: the picture holds NaN or infinite values")
        references.append(Reference(_rgb(picture.detach().float().clamp(0, 1))))
    return references


def _rgb(picture: Tensor) -> Tensor:
    """(H, W, 1 | 3 | 4) -> (H, W, 3), its own memory"""
    if picture.shape[-1] == 4:
        rgb, alpha = picture[..., :3], picture[..., 3:]
        return rgb * alpha + (1 - alpha)
    return picture.expand(-1, -1, 3).contiguous()
