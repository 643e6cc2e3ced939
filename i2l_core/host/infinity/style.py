"""What a drawing with Infinity starts from in the host: a style of pictures or of words, and the bits of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...errors import I2LError
from ...infinity.bits import features
from ...infinity.config import InfinityConfig
from ...infinity.paths import Drawing, Sampling, Styling
from ...infinity.scales import Scales
from ...infinity.style import StyleSettings, style_of_pictures
from ...references import Reference
from .model import InfinityModel
from .prompts import texts_of
from .run import words_feature
from .vae import InfinityVAE


@dataclass(frozen=True)
class PictureStyle:
    """The style of reference pictures, seen through a VAE."""

    vae: InfinityVAE
    references: tuple[Reference, ...]
    settings: StyleSettings = field(default_factory=StyleSettings)


@dataclass(frozen=True)
class WordStyle:
    """The style that a picture drawn from CONDITIONING has."""

    conditioning: Sequence[Any]
    settings: StyleSettings = field(default_factory=StyleSettings)


def styling_of(
    style: PictureStyle | WordStyle, model: InfinityModel, drawing: Drawing, sampling: Sampling
) -> Styling:
    """What a style does to this drawing.

    Words are drawn up to the blended scale as the picture is: same seed, size, batch and negative prompt. Raises
    I2LError for a VAE of another model, and as `style_of_pictures`, `texts_of` and `run` do.
    """
    if isinstance(style, PictureStyle):
        return _of_pictures(style, model.config, drawing.scales)
    texts = texts_of("a prompt of the style", style.conditioning, len(drawing.scales.maps))
    words = replace(drawing, texts=texts, kept=())
    feature = words_feature(model, words, sampling, style.settings.blend.step)
    return style.settings.styling([feature], [1.0], drawing.scales)


def kept_bits(
    latent: Mapping[str, Any], config: InfinityConfig, scales: Scales, count: int
) -> tuple[Tensor, ...]:
    """The bits of a picture at its first `count` scales, (B, n, token bits) each, from the LATENT that VAE Encode gives
    with Infinity's VAE. Raises I2LError for a LATENT that is empty, of another model or size, or has a mask, and for a
    count that is out of range."""
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or samples.ndim != 4 or samples.shape[1] != config.bits:
        found = tuple(samples.shape) if isinstance(samples, Tensor) else "none"
        raise I2LError(
            f"expected a LATENT of {config.bits} channels to start from, got {found}; use VAE Encode with "
            "Infinity's VAE"
        )
    if not samples.any():
        raise I2LError(
            "this LATENT is empty, so there is nothing to keep; use VAE Encode with Infinity's VAE"
        )
    if latent.get("noise_mask") is not None:
        raise I2LError("this LATENT has a mask, which Infinity has no use for; use VAE Encode without a mask")
    if not 0 <= count <= len(scales.maps):
        raise I2LError(f"expected 0 to {len(scales.maps)} scales to keep, got {count}; keep fewer")
    return features(samples, scales, config.patchify).bits[:count]


def _of_pictures(style: PictureStyle, config: InfinityConfig, scales: Scales) -> Styling:
    config.check_coder(style.vae.config.bits)

    def encode(pictures: Tensor) -> Tensor:
        return style.vae.encode((pictures.movedim(1, -1) + 1) / 2)

    return style_of_pictures(style.references, style.settings, encode, scales, config.patchify)
