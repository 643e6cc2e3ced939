"""A style for Infinity before the size of the picture is known: reference pictures or words, and how they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import I2LError
from ..references import Reference, bytes_of, with_positive_weight
from .bits import features
from .blend import BlendSettings, style_part
from .paths import Styling
from .scales import Scales

COVER, CONTAIN = "cover", "contain"
FITS = (COVER, CONTAIN)


@dataclass(frozen=True)
class StyleSettings:
    """How a style is used. `structure_end`: the share of the scales after which the structure is free, and the content
    path with it ends; 1: never. `fit`: COVER crops a reference, CONTAIN frames it in its mean colour.
    Raises I2LError for a value out of range."""

    blend: BlendSettings = field(default_factory=BlendSettings)
    keep_structure: bool = True
    structure_end: float = 1.0
    shared_draws: bool = True
    fit: str = COVER

    def __post_init__(self) -> None:
        if not 0 <= self.structure_end <= 1:
            raise I2LError(f"expected the structure to end from 0 to 1, got {self.structure_end}; 1 keeps it")
        if self.fit not in FITS:
            raise I2LError(f"expected a fit of {', '.join(FITS)}, got {self.fit}; choose one of them")

    def structure(self, count: int) -> tuple[int, int] | None:
        """The first and the last scale, from 1, of `count` at which the structure is kept; None if there is none."""
        first, last = self.blend.step + 1, round(self.structure_end * count)
        return (first, last) if self.keep_structure and first <= last else None

    def styling(self, sources: Sequence[Tensor], weights: Sequence[float], scales: Scales) -> Styling:
        """From the features of references or words at the blended scale, each (1 or rows, d, H, W)."""
        part = style_part(sources, weights, self.blend)
        return Styling(part, self.blend, self.structure(len(scales.maps)), self.shared_draws)


def style_of_pictures(
    references: Sequence[Reference],
    settings: StyleSettings,
    encode: Callable[[Tensor], Tensor],
    scales: Scales,
    patchify: bool,
) -> Styling:
    """What references do at this size. `encode`: pictures (1, 3, H, W) from -1 to 1 -> latents of the picture coder.

    Masked-out parts are filled with the mean colour of the rest. Raises I2LError if no reference has a weight above 0,
    or if there are fewer scales than the blended one.
    """
    used = with_positive_weight(references)
    step, count = settings.blend.step, len(scales.maps)
    if step > count:
        raise I2LError(f"expected a style scale from 1 to {count}, got {step}; choose an earlier scale")
    height, width = scales.pixels
    sources = []
    for reference in used:
        picture = fitted(reference.mask_filled().pixels, height, width, settings.fit)
        sources.append(features(encode(picture * 2 - 1), scales, patchify).sums[step - 1])
    return settings.styling(sources, [float(reference.weight) for reference in used], scales)


def fitted(pixels: Tensor, height: int, width: int, fit: str) -> Tensor:
    """(H, W, 3) from 0 to 1 -> (1, 3, height, width) from 0 to 1, on the CPU, in steps of 1 / 255: resized by Lanczos
    as the reference implementation does, cropped in the middle or framed."""
    values = bytes_of(pixels)
    picture = Image.fromarray(values.numpy())
    ratio = picture.width / picture.height
    if (ratio <= width / height) == (fit == COVER):
        size = (width, max(1, int(width / ratio)))
    else:
        size = (max(1, int(ratio * height)), height)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if fit == COVER:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    else:
        mean = values.float().mean((0, 1)).round().to(torch.uint8).tolist()
        frame = Image.new("RGB", (width, height), tuple(mean))
        frame.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        picture = frame
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
