"""Boxes set like a newspaper: from the top down, then in the next column on the right, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

GAP = 20  # between boxes, and between columns
SCREEN = 16 / 9  # width by height of what the columns should fill


@dataclass(frozen=True)
class Place:
    """Of a box: its corner, and the width of its column."""

    left: float
    top: float
    width: float


def placed(boxes: Sequence[tuple[float, float]]) -> tuple[list[Place], tuple[float, float]]:
    """(width, height) of each box -> (places, size of all), as large as possible on a screen."""
    return min((_set(boxes, columns) for columns in _columns(len(boxes))), key=lambda found: extent(found[1]))


def extent(size: tuple[float, float]) -> float:
    """What limits how large it is shown: its height, or its width brought to a screen's height."""
    return max(size[0] / SCREEN, size[1])


def _columns(count: int) -> Iterator[list[range]]:
    """Every way to part `count` boxes into columns."""
    for cuts in range(count):
        for starts in combinations(range(1, count), cuts):
            yield [range(a, b) for a, b in zip((0, *starts), (*starts, count), strict=True)]


def _set(
    boxes: Sequence[tuple[float, float]], columns: Sequence[range]
) -> tuple[list[Place], tuple[float, float]]:
    places: list[Place] = []
    left = bottom = 0.0
    for column in columns:
        width, top = max(boxes[i][0] for i in column), 0.0
        for i in column:
            places.append(Place(left, top, width))
            top += boxes[i][1] + GAP
        left += width + GAP
        bottom = max(bottom, top)
    return places, (left - GAP, bottom - GAP)
