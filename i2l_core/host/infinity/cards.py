"""What the nodes of Infinity say about themselves: cards (`i2l_core/card.py`)."""

from __future__ import annotations

from torch import Tensor

from ...card import Card, warning
from .model import InfinityModel
from .style import PictureStyle, WordStyle
from .vae import InfinityVAE

OTHER_VAE = (
    "this file is named as a VAE that infinity_2b_reg.pth was not trained with; its pictures would be bad, so load "
    "infinity_vae_d32reg.pth"
)
SMALL = "infinity_2b_reg.pth was trained for 1M alone; smaller pictures come out worse"

_PLAIN, _REGULAR, _REGULAR_BITS = "d32", ("d32reg", "d32_reg"), 32
_SIZES_2B = (2048, 32, 32)  # width, depth and bits of infinity_2b_reg.pth
_LEAST_2B = 900_000  # pixels: all of 1M are more, all of 0.60M fewer


def model_card(model: InfinityModel) -> Card:
    config, size = model.config, model.patcher.model_size() / 2**30
    computed = str(model.dtype).removeprefix("torch.")
    return {
        "lines": [
            f"Infinity: {config.depth} blocks of width {config.width}, {config.bits} bits a place",
            f"{size:.1f} GiB of weights, computed in {computed}",
        ]
    }


def vae_card(vae: InfinityVAE, name: str) -> Card:
    """`name`: of the file. The released VAEs of 32 bits are told apart by it alone."""
    lines = [f"{vae.config.bits} bits a place, {vae.config.cell} x {vae.config.cell} pixels"]
    other = vae.config.bits == _REGULAR_BITS and _PLAIN in name and not any(one in name for one in _REGULAR)
    return {"lines": lines, "warnings": [warning("infinity_vae", OTHER_VAE)] if other else []}


def drawn_card(model: InfinityModel, picture: Tensor, style: PictureStyle | WordStyle | None) -> Card:
    """`picture`: the sum of codes (rows, bits, H, W) that was drawn."""
    config = model.config
    rows, _, height, width = picture.shape
    height, width = height * config.cell, width * config.cell
    lines = [f"{rows} x " * (rows > 1) + f"{width} x {height} pixels"]
    if style is not None:
        lines.append(style_line(style))
    small = height * width < _LEAST_2B and (config.width, config.depth, config.bits) == _SIZES_2B
    return {"lines": lines, "warnings": [warning("infinity_small", SMALL)] if small else []}


def style_line(style: PictureStyle | WordStyle) -> str:
    """One line for the style of pictures or words."""
    settings = style.settings
    if isinstance(style, WordStyle):
        source = "words"
    else:
        count = len(style.references)
        source = f"{count} pictures" if count > 1 else "1 picture"
    end = settings.structure_end if settings.keep_structure else 0.0
    structure = (
        "structure free" if not end else "structure kept" if end == 1 else f"structure kept up to {end:g}"
    )
    return f"style of {source} after scale {settings.blend.step}, strength {settings.blend.strength:g}, {structure}"
