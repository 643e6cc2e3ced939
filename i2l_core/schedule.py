"""Strengths that change along a way (the steps of a sampling, the depth of a network): text to a function.

"0: 1, 0.5: 0.2, 1: 0"       place: strength, straight lines between, level before the first and after the last
"fade out"                   or one of the names in NAMED
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .checks import shown
from .errors import I2LError

NAMED: Mapping[str, str] = MappingProxyType(
    {
        "fade in": "0: 0, 1: 1",
        "fade out": "0: 1, 1: 0",
        "first half": "0.45: 1, 0.55: 0",
        "second half": "0.45: 0, 0.55: 1",
        "middle": "0.15: 0, 0.35: 1, 0.65: 1, 0.85: 0",
    }
)
_MOST_POINTS = 1000
_LARGEST = 10.0  # as far as the strength widgets go
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_POINT = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Curve:
    """Straight lines between `points` (place 0..1, strength), places rising. Two points at one place: a jump.

    Raises I2LError for no point, a place out of range or order, and a strength beyond -10..10.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= _MOST_POINTS:
            raise I2LError(f"a curve has 1 to {_MOST_POINTS} points, got {len(self.points)}")
        places = [place for place, _ in self.points]
        if not all(0 <= place <= 1 for place in places) or places != sorted(places):
            raise I2LError(
                f"the places of a curve must rise from 0 to 1, got {', '.join(f'{p:g}' for p in places[:8])}"
            )
        if not all(abs(strength) <= _LARGEST for _, strength in self.points):  # NaN compares false
            raise I2LError(f"the strengths of a curve must be from {-_LARGEST:g} to {_LARGEST:g}")

    @classmethod
    def parse(cls, text: str) -> Curve | None:
        """The curve that `text` describes; None for text that is empty. Raises I2LError saying how to write one."""
        text = text.strip().lower()
        if not text:
            return None
        parts = [part for part in re.split(r"[,;\n]", NAMED.get(text, text)) if part.strip()]
        found = [_POINT.fullmatch(part) for part in parts]
        if not all(found):
            wrong = next((part for part, match in zip(parts, found, strict=True) if not match), text)
            raise I2LError(
                f"the curve {shown(wrong.strip())} is not understood; write places and strengths as "
                f"0: 1, 0.5: 0.2, 1: 0, or one of: {', '.join(NAMED)}"
            )
        return cls(tuple((float(match[1]), float(match[2])) for match in found if match))

    def __call__(self, place: float) -> float:
        """The strength at a place. At a jump the later one."""
        places = [x for x, _ in self.points]
        after = bisect.bisect_right(places, place)
        if after == 0:
            return self.points[0][1]
        if after == len(places):
            return self.points[-1][1]
        (x, y), (next_x, next_y) = self.points[after - 1 : after + 1]
        return y + (next_y - y) * (place - x) / (next_x - x)

    @property
    def is_zero(self) -> bool:
        return all(strength == 0 for _, strength in self.points)

    def mean(self) -> float:
        """Over all places, for a summary."""
        grid = [(i + 0.5) / 256 for i in range(256)]
        return math.fsum(self(place) for place in grid) / len(grid)
