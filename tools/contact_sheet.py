"""One picture that compares: per style its references, per prompt the result without and with the LoRA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 249, 246)
PANEL = (236, 233, 226)
INK = (32, 32, 36)
SOFT_INK = (92, 92, 98)

MARGIN = 56
GAP = 16  # between pictures
SECTION_GAP = 72
TITLE_SIZE, STYLE_SIZE, LABEL_SIZE, CAPTION_SIZE = 46, 36, 26, 26
COLUMNS = ("references", "without LoRA", "with LoRA")
SECTIONS_A_LINE = 3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Row:
    """One prompt, and the pictures it gave with the same seed."""

    prompt: str
    without: Image.Image
    with_lora: Image.Image


@dataclass(frozen=True)
class Section:
    """One style; `columns`: what is above its pictures."""

    title: str
    references: tuple[Image.Image, ...]
    rows: tuple[Row, ...]
    columns: tuple[str, str, str] = COLUMNS

    def __post_init__(self) -> None:
        if not self.references or not self.rows:
            raise ValueError(f"section {self.title!r}: expected references and rows, got none of one of them")


def contact_sheet(title: str, sections: Sequence[Section], cell: int = 256) -> Image.Image:
    """An RGB picture; `cell` is the side of the square that each picture is fitted into, in pixels."""
    if not sections:
        raise ValueError("expected at least one section")
    layout = _Layout(sections, cell)
    width = max(layout.line_width, 2 * MARGIN + math.ceil(_font(TITLE_SIZE).getlength(title)))
    sheet = Image.new("RGB", (width, layout.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, _font(TITLE_SIZE))
    for number, section in enumerate(sections):
        _draw_section(sheet, draw, layout, section, *layout.place(number))
    return sheet


class _Layout:
    """Sizes and places, all in pixels; the tallest caption decides the height of every row."""

    def __init__(self, sections: Sequence[Section], cell: int) -> None:
        self.cell = cell
        self.section_width = 3 * cell + 4 * GAP  # the references stand in a panel with a border of half a gap
        prompts = [row.prompt for section in sections for row in section.rows]
        self.caption_height = max(
            len(wrap(prompt, _font(CAPTION_SIZE), self.caption_width)) for prompt in prompts
        ) * _line(CAPTION_SIZE)
        self.row_height = cell + 10 + self.caption_height + GAP
        self.head = _line(STYLE_SIZE) + _line(LABEL_SIZE) + 12
        self.section_height = self.head + max(len(section.rows) for section in sections) * self.row_height
        self.in_line = min(SECTIONS_A_LINE, len(sections))
        self.lines = math.ceil(len(sections) / SECTIONS_A_LINE)
        self.top = MARGIN + _line(TITLE_SIZE) + 28
        self.line_width = 2 * MARGIN + self.in_line * self.section_width + (self.in_line - 1) * SECTION_GAP
        body = self.lines * self.section_height + (self.lines - 1) * SECTION_GAP
        self.height = self.top + body + MARGIN - GAP

    @property
    def caption_width(self) -> int:
        return 2 * self.cell + GAP

    def place(self, number: int) -> tuple[int, int]:
        """Left and top of a section."""
        line, column = divmod(number, SECTIONS_A_LINE)
        left = MARGIN + column * (self.section_width + SECTION_GAP)
        return left, self.top + line * (self.section_height + SECTION_GAP)


def _draw_section(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, section: Section, left: int, top: int
) -> None:
    cell = layout.cell
    columns = (left + GAP // 2, left + cell + 3 * GAP, left + 2 * cell + 4 * GAP)
    draw.text((left, top), section.title, INK, _font(STYLE_SIZE))
    for label, x in zip(section.columns, columns, strict=True):
        draw.text((x, top + _line(STYLE_SIZE)), label, SOFT_INK, _font(LABEL_SIZE))
    top += layout.head
    height = len(section.rows) * layout.row_height - GAP
    side, in_line = _reference_grid(len(section.references), cell, height)
    used = math.ceil(len(section.references) / in_line) * (side + GAP) - GAP
    panel = (left, top - GAP // 2, left + cell + GAP, top + used + GAP // 2)
    draw.rounded_rectangle(panel, radius=10, fill=PANEL)
    for number, picture in enumerate(section.references):
        line, column = divmod(number, in_line)
        _paste(sheet, picture, columns[0] + column * (side + GAP), top + line * (side + GAP), side)
    for row in section.rows:
        _paste(sheet, row.without, columns[1], top, cell)
        _paste(sheet, row.with_lora, columns[2], top, cell)
        lines = wrap(row.prompt, _font(CAPTION_SIZE), layout.caption_width)
        for number, line in enumerate(lines):
            draw.text(
                (columns[1], top + cell + 10 + number * _line(CAPTION_SIZE)), line, INK, _font(CAPTION_SIZE)
            )
        top += layout.row_height


def _reference_grid(count: int, width: int, height: int) -> tuple[int, int]:
    """(side of a picture, pictures in a line): as large as fits, in one column if possible."""
    in_line = 1
    while True:
        side = (width - (in_line - 1) * GAP) // in_line
        lines = math.ceil(count / in_line)
        if lines * (side + GAP) - GAP <= height or side <= GAP:
            return side, in_line
        in_line += 1


def _paste(sheet: Image.Image, picture: Image.Image, left: int, top: int, side: int) -> None:
    """Fit a picture into a square, whole and undistorted, in its middle."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = picture.convert("RGB").resize(
        size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    )
    sheet.paste(fitted, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Break a text into lines no wider than `width`; a word that is too wide by itself is broken."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font(size: int) -> Font:
    """Pillow's own scalable font: no font file has to be installed."""
    return ImageFont.load_default(size)


def _line(size: int) -> int:
    """Height of a line of text, with room for what hangs below it."""
    return round(size * 1.4)
