"""A square card to draw on, for the pictures of the template browser, and the pictures that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .host import ROOT

FOLDER = ROOT / "workflows"
REFERENCES = FOLDER / "references"
LIBRARY = FOLDER / "library"

SIDE = 768  # pixels of a card; the template browser shows it as a square of about 220
MARGIN = 24
GAP = 16
GROUND, PANEL, INK, SOFT, ACCENT = "#17181d", "#24262e", "#f4f2ec", "#a9adb8", "#8f74ff"
TEXT, SMALL, TITLE = 34, 26, 62
INNER = SIDE - 2 * MARGIN

Pictures = Mapping[str, Sequence[Image.Image]]  # by the titles of the nodes that show them


class Card:
    """A square to draw on, with places in pixels."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIDE, SIDE), GROUND)
        self._pen = ImageDraw.Draw(self.image)

    def paste(self, picture: Image.Image, left: float, top: float, side: float, frame: str = "") -> None:
        """A square picture with round corners, enlarged smoothly; framed in a colour if it is what matters."""
        left, top, side = round(left), round(top), round(side)
        if frame:
            self._pen.rounded_rectangle((left - 5, top - 5, left + side + 4, top + side + 4), 17, frame)
        mask = Image.new("L", (4 * side, 4 * side))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 48, 255)
        fitted = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        self.image.paste(fitted, (left, top), mask.resize((side, side), Image.Resampling.LANCZOS))

    def row(
        self, pictures: Sequence[Image.Image], left: float, top: float, width: float, gap: float = GAP
    ) -> float:
        """Pictures side by side over a width; returns where they end below."""
        side = (width - gap * (len(pictures) - 1)) / len(pictures)
        for i, picture in enumerate(pictures):
            self.paste(picture, left + i * (side + gap), top, side)
        return top + side

    def text(
        self, words: str, x: float, y: float, size: int = TEXT, color: str = INK, anchor: str = "mm"
    ) -> None:
        self._pen.text((x, y), words, color, ImageFont.load_default(size), anchor=anchor)

    def arrow(self, x: float, y: float, down: bool = True, size: float = 22, color: str = ACCENT) -> None:
        """A filled head, pointing down or right, its middle at a place."""
        a, b = size, size * 0.55
        points = [(-a, -b), (a, -b), (0, b)] if down else [(-b, -a), (-b, a), (b, 0)]
        self._pen.polygon([(x + dx, y + dy) for dx, dy in points], color)

    def badge(self, words: str, right: float, bottom: float) -> None:
        """A few letters in the lower right corner of a picture."""
        width = ImageFont.load_default(SMALL).getlength(words) + 20
        self._pen.rounded_rectangle((right - width - 6, bottom - 44, right - 6, bottom - 6), 12, ACCENT)
        self.text(words, right - width / 2 - 6, bottom - 25, SMALL)

    def box(
        self, words: str, left: float, top: float, width: float, height: float, color: str = PANEL
    ) -> None:
        self._pen.rounded_rectangle((left, top, left + width, top + height), 16, color)
        lines = words.split("\n")
        for i, line in enumerate(lines):
            y = top + height / 2 + (i - (len(lines) - 1) / 2) * 38
            self.text(line, left + width / 2, y, TEXT if i == 0 else SMALL, INK if i == 0 else SOFT)

    def frame(self, words: str, left: float, top: float, width: float, height: float) -> None:
        """A dashed place where nothing is yet."""
        for x in range(round(left), round(left + width), 24):
            for y in (top, top + height):
                self._pen.line((x, y, min(x + 14, left + width), y), SOFT, 3)
        for y in range(round(top), round(top + height), 24):
            for x in (left, left + width):
                self._pen.line((x, y, x, min(y + 14, top + height)), SOFT, 3)
        self.text(words, left + width / 2, top + height / 2, TEXT, SOFT)


def shipped(*names: str) -> list[Image.Image]:
    return [Image.open(REFERENCES / f"{name}.png").convert("RGB") for name in names]


def four(style: str) -> list[Image.Image]:
    return shipped(*(f"{style}_{i}" for i in (1, 2, 3, 4)))


def masked(picture: Image.Image, mask: Image.Image, color: str = ACCENT, share: float = 0.45) -> Image.Image:
    """The picture with its masked part tinted."""
    tint = Image.blend(picture, Image.new("RGB", picture.size, color), share)
    return Image.composite(tint, picture, mask.convert("L"))
