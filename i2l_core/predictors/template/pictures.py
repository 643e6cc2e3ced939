"""Convert references to the input of a Diffusion Template: PIL pictures without weights and masks."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ...errors import I2LError
from ...references import Reference, bytes_of

MAX_WEIGHT = 8  # times that a picture is given

_GRAY = (128, 128, 128)  # the neutral picture of the paper, section 3.4


def pictures_of(references: Sequence[Reference]) -> list[Image.Image]:
    """8 bit RGB pictures, each repeated by its weight; masked-out parts are filled with the mean colour of the rest.

    Raises I2LError unless each weight is a whole number from 0 to MAX_WEIGHT.
    """
    pictures = []
    for reference in references:
        times = int(reference.weight)
        if times != reference.weight or times > MAX_WEIGHT:
            raise I2LError(
                f"a Diffusion Template takes no weights, so a weight is how often the picture is given: expected a "
                f"whole number from 0 to {MAX_WEIGHT}, got {reference.weight:g}"
            )
        pixels = bytes_of(reference.mask_filled().pixels)
        pictures += [Image.fromarray(pixels.numpy())] * times
    return pictures


def gray_square() -> Image.Image:
    """The neutral picture of a template that takes one picture, whatever its size: 1024 x 1024 (DiffSynth's example
    of Template-KleinBase4B-ContentRef)."""
    return Image.new("RGB", (1024, 1024), _GRAY)


def grays_like(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """As many gray pictures, of the same sizes."""
    return [Image.new("RGB", picture.size, _GRAY) for picture in pictures]
