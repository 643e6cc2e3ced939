"""Curves, and the schedule of a LoRA: start, end and strength over the sampling.

A curve is text:
"0: 1, 0.5: 0.2, 1: 0"       keyframes position: strength, linear in between, constant outside of them
"fade out"                   or one of the names in NAMED
"""

from __future__ import annotations

import bisect
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
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_POINT = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Curve:
    """A piecewise linear curve through keyframes `points`: (position 0..1, strength), sorted by position.

    Two keyframes at one position make a jump. Raises I2LError if there is no keyframe, if positions are out of range or
    unsorted, or if a strength is outside of -10..10.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= _MOST_POINTS:
            raise I2LError(f"a curve has 1 to {_MOST_POINTS} points, got {len(self.points)}")
        places = [place for place, _ in self.points]
        if not all(0 <= place <= 1 for place in places) or places != sorted(places):
            raise I2LError(
                f"the positions of a curve must rise from 0 to 1, got {', '.join(f'{p:g}' for p in places[:8])}"
            )
        if not all(abs(strength) <= _LARGEST for _, strength in self.points):  # NaN compares false
            raise I2LError(f"the strengths of a curve must be from {-_LARGEST:g} to {_LARGEST:g}")

    @classmethod
    def parse(cls, text: str) -> Curve | None:
        """Parse a curve; None for empty text. Raises I2LError that shows the right format."""
        text = text.strip().lower()
        if not text:
            return None
        parts = [part for part in re.split(r"[,;\n]", NAMED.get(text, text)) if part.strip()]
        matches = [_POINT.fullmatch(part) for part in parts]
        if not all(matches):
            wrong = next((part for part, match in zip(parts, matches, strict=True) if not match), text)
            raise I2LError(
                f"the curve {shown(wrong.strip())} cannot be read; write keyframes position: factor, such as "
                f"0: 1, 0.5: 0.2, 1: 0, or one of: {', '.join(NAMED)}"
            )
        return cls(tuple((float(match[1]), float(match[2])) for match in matches if match))

    def __call__(self, place: float) -> float:
        """The strength at a position; at a jump, the value after it."""
        places = [x for x, _ in self.points]
        after = bisect.bisect_right(places, place)
        if after == 0:
            return self.points[0][1]
        if after == len(places):
            return self.points[-1][1]
        (x, y), (next_x, next_y) = self.points[after - 1 : after + 1]
        return y + (next_y - y) * (place - x) / (next_x - x)


@dataclass(frozen=True)
class Schedule:
    """When a LoRA acts, as fractions 0..1 of the sampling (ComfyUI's start_percent and end_percent).

    `curve`: a factor on the strength at each percent. Raises I2LError unless 0 <= start <= end <= 1.
    """

    start: float = 0.0
    end: float = 1.0
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:  # NaN compares false
            raise I2LError(f"start and end must be from 0 to 1, got {self.start} and {self.end}")
        if self.start > self.end:
            raise I2LError(f"start ({self.start}) is after end ({self.end}); the LoRA would never act")

    @classmethod
    def parse(cls, start: float, end: float, curve: str) -> Schedule:
        """Build a schedule from the widgets of a node. Raises I2LError like `Schedule` and `Curve.parse`."""
        return cls(start, end, Curve.parse(curve))

    @property
    def is_constant(self) -> bool:
        """Whether the LoRA acts the same at every step."""
        return self.start == 0 and self.end == 1 and self.curve is None


ALWAYS = Schedule()
