from __future__ import annotations

import numpy
import pytest
from PIL import Image, ImageFont

from i2l.tools.contact_sheet import PANEL, PAPER, Row, Section, contact_sheet, wrap

RED, GREEN, BLUE = (200, 20, 20), (20, 160, 20), (20, 20, 200)


def picture(color: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, color)


def section(rows: int = 2, references: int = 3, prompt: str = "one star") -> Section:
    row = Row(prompt, picture(GREEN), picture(BLUE))
    return Section("woodcut", (picture(RED),) * references, (row,) * rows)


def count(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    return int((numpy.asarray(sheet) == color).all(axis=-1).sum())


@pytest.mark.parametrize("sections", [1, 2, 3, 4])
@pytest.mark.parametrize("references", [1, 4, 9])
def test_every_picture_is_whole(sections, references):
    sheet = contact_sheet("Title", [section(references=references)] * sections, cell=64)
    assert count(sheet, GREEN) == count(sheet, BLUE) == sections * 2 * 64 * 64
    assert count(sheet, RED) % (sections * references) == 0
    assert count(sheet, RED) > 0
    assert count(sheet, PANEL) > 0


@pytest.mark.parametrize("prompt", ["one star", "a long prompt " * 20, "x" * 300])
def test_nothing_touches_the_border(prompt):
    sheet = contact_sheet("A title wider than the sheet itself " * 3, [section(prompt=prompt)], cell=64)
    width, height = sheet.size
    for box in (
        (0, 0, width, 30),
        (0, height - 30, width, height),
        (0, 0, 30, height),
        (width - 30, 0, width, height),
    ):
        assert sheet.crop(box).getcolors() == [((box[2] - box[0]) * (box[3] - box[1]), PAPER)]


def test_pictures_keep_their_shape():
    wide = Section("x", (picture(RED, (64, 16)),), (Row("p", picture(GREEN, (16, 64)), picture(BLUE)),))
    sheet = contact_sheet("t", [wide], cell=64)
    assert count(sheet, RED) == 64 * 16
    assert count(sheet, GREEN) == 16 * 64


def test_wrapped_lines_fit_and_lose_nothing():
    font = ImageFont.load_default(22)
    text = "three mushrooms at the bottom, chalk, and averyveryverylongwordthatdoesnotfit"
    lines = wrap(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_empty_sections_are_refused():
    with pytest.raises(ValueError, match="expected references and rows"):
        Section("x", (), (Row("p", picture(RED), picture(RED)),))
    with pytest.raises(ValueError, match="at least one section"):
        contact_sheet("t", [])
