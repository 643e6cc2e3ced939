"""Twelve held-out styles x four held-out prompts in one picture: the references in small, then what is drawn.

The styles are the first of each technique in the pool and the next one after them; nothing is picked by hand. All
rows share the noise, so that only the LoRA tells one from another.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from i2l_core.demo.content import contents
from i2l_core.demo.pool import Pool
from i2l_core.demo.prompts import content_prompt
from i2l_core.demo.sampler import Sampling, sample
from i2l_core.references import GRAY
from tools.contact_sheet import INK, PAPER, SOFT_INK

from .._world import Bench, as_image, predict, repeated

PICTURE = Path("docs/images/styles.jpg")
_STYLES, _HALVES = 12, 2
_PROMPTS = (
    "one house on the right",
    "two moon on the left",
    "two fish at the top",
    "three tree at the bottom",
)
_POOL = 64
_SAMPLING = Sampling(20, 4.0)  # asymmetric
_SIDE, _GAP, _MARGIN, _HEADER, _FONT = 128, 8, 28, 34, 15


@torch.no_grad()
def draw(path: Path = PICTURE) -> Path:
    bench = Bench(_POOL, False, 4, 1)
    chosen = first_of_each(bench.pool, _STYLES)
    asked = [c for p in _PROMPTS for c in contents(True) if content_prompt(c) == p]
    references = bench.references[chosen]
    style = predict(references)
    gray = repeated(predict(torch.full_like(references[:1], GRAY)), _STYLES)
    noise = torch.randn(len(asked), 16, 16, 16, generator=torch.Generator().manual_seed(1))
    words = bench.words_of(asked).repeat(_STYLES, 1, 1)
    latents = sample(
        bench.backbone,
        noise.to(bench.device).repeat(_STYLES, 1, 1, 1),
        words,
        bench.no_words.expand_as(words),
        _SAMPLING,
        style,
        gray,
    )
    pictures = bench.decoder(latents).clamp(0, 1).unflatten(0, (_STYLES, -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    _laid_out(references, pictures).save(path, quality=88, subsampling=0)
    return path


def first_of_each(pool: Pool, count: int) -> list[int]:
    """Indices of styles: the first of each technique, then whichever come next, in the pool's order."""
    techniques = [style.technique for style in pool.styles]
    first = [i for i, t in enumerate(techniques) if t not in techniques[:i]]
    others = [i for i in range(len(techniques)) if i not in first]
    return sorted((first + others)[:count])


def _laid_out(references: Tensor, pictures: Tensor) -> Image.Image:
    cell = _SIDE + _GAP
    half = (1 + len(_PROMPTS)) * cell + _GAP
    rows = _STYLES // _HALVES
    width = _HALVES * half + (_HALVES - 1) * _MARGIN + 2 * _MARGIN
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _HEADER + rows * cell), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for h in range(_HALVES):
        left = _MARGIN + h * (half + _MARGIN)
        for c, title in enumerate(("references", *(p.split(" ", 2) for p in _PROMPTS))):
            text = title if isinstance(title, str) else f"{title[0]} {_plural(*title[:2])}\n{title[2]}"
            x = left + c * cell + (2 * _GAP if c else 0) + _SIDE / 2
            colour = INK if c else SOFT_INK
            pen.text((x, _MARGIN + _HEADER - _GAP), text, colour, font, anchor="md", align="center")
        for r in range(rows):
            s, top = h * rows + r, _MARGIN + _HEADER + r * cell
            for i, reference in enumerate(references[s]):
                small, step = _SIDE // 2 - 1, _SIDE // 2 + 1
                picture = as_image(reference).resize((small, small), Image.Resampling.LANCZOS)
                sheet.paste(picture, (left + i % 2 * step, top + i // 2 * step))
            for c, picture in enumerate(pictures[s], start=1):
                sheet.paste(as_image(picture), (left + c * cell + 2 * _GAP, top))
    return sheet


def _plural(count: str, subject: str) -> str:
    return subject if count == "one" or subject == "fish" else f"{subject}s"
