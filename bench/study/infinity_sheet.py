"""Twelve held-out styles as Infinity takes them: a reference, then the ways to blend, with one prompt and one seed.

The styles are those of the other sheet (sheet.py); nothing is picked by hand.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from i2l_core.infinity.blend import REPLACE, TOP, BlendSettings, style_part
from tools.contact_sheet import INK, PAPER

from .._world import Bench, as_image
from .infinity import World
from .sheet import first_of_each

PICTURE = Path("docs/images/infinity.jpg")
_COLUMNS = {
    "without": (None, None),
    "all of it (REP)": (BlendSettings(REPLACE), None),
    "1 component": (BlendSettings(TOP, k=1), (4, 7)),
    "alpha 5": (BlendSettings(alpha=5.0), (4, 7)),
    "alpha 1 (paper)": (BlendSettings(), (4, 7)),
    "alpha 0.2": (BlendSettings(alpha=0.2), (4, 7)),
    "structure free": (BlendSettings(), None),
}
_STYLES, _POOL = 12, 64
_SIDE, _GAP, _MARGIN, _HEADER, _FONT = 128, 8, 28, 26, 15


@torch.no_grad()
def draw(path: Path = PICTURE) -> Path:
    bench = Bench(_POOL, False, 1, 1)
    chosen = first_of_each(bench.pool, _STYLES)
    world = World(bench)
    texts = world.texts[chosen]
    columns = [bench.references[chosen, 0]]
    for settings, structure in _COLUMNS.values():
        part = (
            None if settings is None else style_part([world.sums(settings.step)[0][chosen]], [1.0], settings)
        )
        columns.append(world.pictures(texts, settings, part, structure))
    cell = _SIDE + _GAP
    size = (2 * _MARGIN + (1 + len(_COLUMNS)) * cell + _GAP, 2 * _MARGIN + _HEADER + _STYLES * cell)
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for c, (title, pictures) in enumerate(zip(("the style", *_COLUMNS), columns, strict=True)):
        left = _MARGIN + c * cell + (2 * _GAP if c else 0)
        pen.text((left + _SIDE / 2, _MARGIN + _HEADER - _GAP), title, INK, font, anchor="md")
        for r, picture in enumerate(pictures):
            sheet.paste(as_image(picture), (left, _MARGIN + _HEADER + r * cell))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88, subsampling=0)
    return path
