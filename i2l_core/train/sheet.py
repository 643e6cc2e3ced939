"""Sample sheets: references, and pictures sampled with and without the predicted LoRA."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .base import Base, LatentCodec, Layers, Texts
from .config import RunTable

_CELL, _GAP, _TEXT = 192, 8, 18  # pixels: longest side of a picture, between pictures, of a line of text
_MOST_REFERENCES = 4


@torch.no_grad()
def sample(
    base: Base,
    noise: Tensor,
    texts: Sequence[Texts],
    negative: Texts | None,
    layers: Layers | None,
    steps: int,
    cfg: float,
) -> Tensor:
    """Noise (B, C, h, w) of unit variance -> latents of the VAE, by Euler steps over the model's own noise levels.

    The LoRAs act on both sides of guidance, as merged ones do; without `negative` there is no guidance.
    """
    levels = torch.cat([base.sigmas(torch.linspace(1, 1 / steps, steps)), torch.zeros(1)]).to(noise)
    x = noise * base.noise_scale
    for now, then in itertools.pairwise(levels):
        sigma = now.expand(len(x))
        v = base.velocity(x, sigma, texts, layers)
        if negative is not None and cfg != 1:
            without = base.velocity(x, sigma, [negative] * len(x), layers)
            v = without + cfg * (v - without)
        x = x + (then - now) * v
    return base.process_out(x)


def draw_sheet(
    path: Path,
    base: Base,
    codec: LatentCodec,
    table: RunTable,
    references: Sequence[Sequence[Tensor]],
    noise: Tensor,
    texts: Sequence[Texts],
    prompts: Sequence[str],
    negative: Texts | None,
    layers: Layers,
) -> None:
    """One row per style: its references, then for each of its prompts a picture without and one with the LoRA.

    `references`: S lists of (H, W, 3) floats 0..1; `noise`, `texts`, `prompts`: of S equal groups.
    """
    drawn = [
        codec.decode(sample(base, noise, texts, negative, lora, table.sheet_steps, table.sheet_cfg)).cpu()
        for lora in (None, layers)
    ]
    each = len(prompts) // len(references)
    shown = min(_MOST_REFERENCES, max(map(len, references)))
    rows = []
    for s, pictures in enumerate(references):
        cells: list[tuple[Tensor | None, str]] = [(p.cpu(), "") for p in pictures[:shown]]
        cells += [(None, "")] * (shown - len(cells))
        for i in range(s * each, (s + 1) * each):
            cells += [(drawn[0][i], prompts[i] or "(no prompt)"), (drawn[1][i], "")]
        rows.append(cells)
    heads = ["reference"] * shown + ["base model", "with LoRA"] * each
    path.parent.mkdir(parents=True, exist_ok=True)
    compose(rows, heads).save(path)


def compose(rows: Sequence[Sequence[tuple[Tensor | None, str]]], heads: Sequence[str]) -> Image.Image:
    """Pictures (H, W, 3) floats 0..1 with a line below, in a table with a line above each column."""
    height = _CELL + _TEXT + _GAP
    sheet = Image.new(
        "RGB", (_GAP + len(heads) * (_CELL + _GAP), _TEXT + 2 * _GAP + len(rows) * height), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT - 5)
    for column, head in enumerate(heads):
        pen.text((_GAP + column * (_CELL + _GAP), _GAP), head, "black", font)
    for row, cells in enumerate(rows):
        top = _TEXT + 2 * _GAP + row * height
        for column, (picture, line) in enumerate(cells):
            left = _GAP + column * (_CELL + _GAP)
            if picture is not None:
                sheet.paste(_fitted(picture), (left, top))
            if line:
                pen.text((left, top + _CELL + 1), _short(line, 2 * _CELL, font), "black", font)
    return sheet


def _fitted(picture: Tensor) -> Image.Image:
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    scale = _CELL / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _short(line: str, width: int, font) -> str:
    """As much of a line as fits."""
    while font.getlength(line) > width:
        line = line[:-4] + "…"
    return line
