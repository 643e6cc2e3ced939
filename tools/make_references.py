"""Draws the pictures that ship with the pack: `python -m tools.make_references`, from the root.

References are held-out styles and held-out contents of the demo world: the demo model and the predictor were not
trained on them. Pictures of workflows that are not references, such as a scene to inpaint and masks, have no number in
their names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from i2l_core.demo.content import COUNTS, PLACES, SUBJECTS, Content, contents, distance_field
from i2l_core.demo.render import SIZE, render
from i2l_core.demo.style import Style, sample_style

from .host import ROOT

REFERENCES = ROOT / "workflows" / "references"
LIBRARY = ROOT / "workflows" / "library"
PICTURES = 4
SEEDS = {"neon": 2, "glass": 8, "blueprint": 5}  # technique -> which held-out draw of it
LIBRARY_SEEDS = {"chalk": 2, "clay": 1, "poster": 2, "watercolour": 1}

PAPER, INK = (246, 240, 226), (60, 54, 48)
WINDOW = (10, 10, 118, 94)  # of the page: left, top, right, bottom of its picture


def held_out_style(technique: str, seed: int) -> Style:
    """The first held-out style of a technique in the stream of a seed."""
    rng = np.random.default_rng(seed)
    while True:
        style = sample_style(rng, held_out=True)
        if style.name == technique:
            return style


def draw(content: Content, style: Style, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(np.round(render(content, style, rng) * 255).astype(np.uint8))


def style_pictures(technique: str, seed: int) -> list[Image.Image]:
    """PICTURES of a held-out style, each of another held-out content."""
    style, rng = held_out_style(technique, seed), np.random.default_rng([seed, 1])
    choices = contents(held_out=True)
    return [draw(choices[index], style, rng) for index in rng.permutation(len(choices))[:PICTURES]]


def named(count: str, subject: str, place: str) -> Content:
    return Content(SUBJECTS.index(subject), COUNTS.index(count), PLACES.index(place))


def page() -> tuple[Image.Image, Image.Image]:
    """A neon picture printed on a page with a border and lines of text, and the mask of the picture alone."""
    rng = np.random.default_rng([SEEDS["neon"], 2])
    picture = draw(named("two", "star", "middle"), held_out_style("neon", SEEDS["neon"]), rng)
    sheet, mask = Image.new("RGB", (SIZE, SIZE), PAPER), Image.new("RGB", (SIZE, SIZE))
    left, top, right, bottom = WINDOW
    sheet.paste(picture.crop((10, 22, 118, 106)), WINDOW)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), "white")
    pen = ImageDraw.Draw(sheet)
    for y, width in ((101, 108), (108, 96), (115, 60)):
        pen.rectangle((left, y, left + width - 1, y + 2), INK)
    return sheet, mask


def scene() -> tuple[Image.Image, Image.Image]:
    """A plain picture of two houses, and the mask of the right one."""
    rng = np.random.default_rng([LIBRARY_SEEDS["poster"], 2])
    style = held_out_style("poster", LIBRARY_SEEDS["poster"])
    mask = Image.new("RGB", (SIZE, SIZE))
    ImageDraw.Draw(mask).rectangle((SIZE // 2, 0, SIZE, SIZE), "white")
    return draw(named("two", "house", "middle"), style, rng), mask


def structure() -> Image.Image:
    """Where figures are, white on black: what the demo's structure template looks at."""
    field = distance_field(named("one", "tree", "left"), SIZE, np.random.default_rng(4))
    cover = np.clip(0.5 - field * (SIZE / 2), 0, 1)
    return Image.fromarray(np.round(cover * 255).astype(np.uint8)).convert("RGB")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
    sys.stdout.write(f"{path}\n")


def main() -> None:
    for technique, seed in SEEDS.items():
        for number, picture in enumerate(style_pictures(technique, seed), 1):
            save(picture, REFERENCES / f"{technique}_{number}.png")
    for technique, seed in LIBRARY_SEEDS.items():
        for number, picture in enumerate(style_pictures(technique, seed), 1):
            save(picture, LIBRARY / technique / f"{number}.png")
    save(structure(), REFERENCES / "structure.png")
    for name, pair in (("page", page()), ("scene", scene())):
        for picture, end in zip(pair, ("", "_mask"), strict=True):
            save(picture, REFERENCES / f"{name}{end}.png")


if __name__ == "__main__":
    main()
