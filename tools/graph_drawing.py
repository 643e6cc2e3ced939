"""A drawing of nodes and what connects them, for help pages of nodes whose models do not ship with the pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .card_drawing import ACCENT, GROUND, INK, PANEL, SOFT

WIDTH, GAP, ROW, TITLE, MARGIN = (
    200,
    44,
    22,
    28,
    10,
)  # pixels: of a node, between columns, of a socket, of a title
LETTERS, DOT, ROUND, AWAY = 14, 4, 6, 9
LIGHTER = "#343742"
FINER = 2  # drawn larger, then reduced, so that lines are smooth

Place = tuple[float, float]
Socket = tuple[str, str, str]  # title of the node, IN or OUT, name
IN, OUT = "in", "out"


@dataclass(frozen=True)
class Box:
    """A node: its title and the names of the sockets that are drawn."""

    title: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return TITLE + ROW * max(len(self.inputs), len(self.outputs), 1) + AWAY


@dataclass(frozen=True)
class Link:
    """From an output to an input, each a node's title and a name."""

    start: tuple[str, str]
    end: tuple[str, str]


def graph(columns: Sequence[Sequence[Box]], links: Sequence[Link], shown: str) -> Image.Image:
    """Columns of nodes from left to right, and their links. `shown`: the title of the node that stands out.
    Raises KeyError for a link to a node or socket that is not drawn."""
    corners, sockets, (width, height) = _placed(columns)
    drawn = Image.new("RGB", (width * FINER, height * FINER), GROUND)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(LETTERS * FINER)
    for link in links:
        wire = _wire(sockets[link.start[0], OUT, link.start[1]], sockets[link.end[0], IN, link.end[1]])
        pen.line([_finer(place) for place in wire], SOFT, 2 * FINER, joint="curve")
    for box, (left, top) in corners.items():
        colour = ACCENT if box.title == shown else LIGHTER
        ends = (*_finer((left, top)), *_finer((left + WIDTH, top + box.height)))
        pen.rounded_rectangle(ends, ROUND * FINER, PANEL, colour, FINER)
        title = (*_finer((left, top)), *_finer((left + WIDTH, top + TITLE)))
        pen.rounded_rectangle(title, ROUND * FINER, colour, corners=(True, True, False, False))
        pen.text(_finer((left + AWAY, top + TITLE / 2)), box.title, INK, font, anchor="lm")
    for (_, side, name), (x, y) in sockets.items():
        pen.ellipse((*_finer((x - DOT, y - DOT)), *_finer((x + DOT, y + DOT))), SOFT)
        place = _finer((x + AWAY if side == IN else x - AWAY, y))
        pen.text(place, name, INK, font, anchor="lm" if side == IN else "rm")
    return drawn.resize((width, height), Image.Resampling.LANCZOS)


def _placed(
    columns: Sequence[Sequence[Box]],
) -> tuple[dict[Box, Place], dict[Socket, Place], tuple[int, int]]:
    """The corner of each node, the place of each socket, and the size of it all; columns are centred."""
    heights = [sum(box.height + MARGIN for box in column) + MARGIN for column in columns]
    corners: dict[Box, Place] = {}
    sockets: dict[Socket, Place] = {}
    for number, (column, height) in enumerate(zip(columns, heights, strict=True)):
        left, top = MARGIN + number * (WIDTH + GAP), MARGIN + (max(heights) - height) / 2
        for box in column:
            corners[box] = left, top
            for side, names, x in ((IN, box.inputs, left), (OUT, box.outputs, left + WIDTH)):
                for row, name in enumerate(names):
                    sockets[box.title, side, name] = x, top + TITLE + ROW * (row + 0.5) + AWAY / 2
            top += box.height + MARGIN
    return corners, sockets, (2 * MARGIN + len(columns) * (WIDTH + GAP) - GAP, max(heights))


def _wire(start: Place, end: Place) -> list[Place]:
    """It leaves and arrives level, as in ComfyUI."""
    (x0, y0), (x1, y1) = start, end
    shares = [i / 32 for i in range(33)]
    return [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t * t * (3 - 2 * t)) for t in shares]


def _finer(place: Place) -> Place:
    return place[0] * FINER, place[1] * FINER
