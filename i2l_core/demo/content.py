"""The content of a picture of the demo world: subject, count and place. Style is separate."""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from dataclasses import dataclass

import numpy as np

SUBJECTS = ("star", "heart", "moon", "flower", "fish", "tree", "house", "mushroom")
COUNTS = ("one", "two", "three")
PLACES = ("left", "right", "top", "bottom", "middle")
PARTS = ("subject", "count", "place")  # fields of Content and of Verdict

_HELD_OUT_SHARE = 0.15
_TABLE_SIZE, _TABLE_REACH = 160, 2.0  # distance tables cover [-reach, reach] in units of a subject's radius


@dataclass(frozen=True, order=True)
class Content:
    """Indices into SUBJECTS, COUNTS and PLACES."""

    subject: int
    count: int
    place: int

    def __post_init__(self) -> None:
        for name, value, words in zip(
            PARTS,
            (self.subject, self.count, self.place),
            (SUBJECTS, COUNTS, PLACES),
            strict=True,
        ):
            if not 0 <= value < len(words):
                raise ValueError(f"{name}: expected 0..{len(words) - 1}, got {value}")

    @property
    def held_out(self) -> bool:
        """Whether the combination is held out. Its subject, count and place each occur in training."""
        key = f"{SUBJECTS[self.subject]}/{COUNTS[self.count]}/{PLACES[self.place]}"
        return zlib.crc32(key.encode()) % 1000 < 1000 * _HELD_OUT_SHARE


@functools.cache
def contents(held_out: bool | None) -> tuple[Content, ...]:
    """All combinations of one side of the split, or of both (None), in a fixed order."""
    every = itertools.product(range(len(SUBJECTS)), range(len(COUNTS)), range(len(PLACES)))
    return tuple(c for c in itertools.starmap(Content, every) if held_out is None or c.held_out == held_out)


def distance_field(content: Content, size: int, rng: np.random.Generator) -> np.ndarray:
    """Signed distance to the figures, negative inside, (size, size) float32 in units of half the picture.

    Position, size and rotation of each figure jitter with `rng`.
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = axis[None, :], axis[:, None]
    field = np.full((size, size), np.float32(9.0))
    radius = (0.52, 0.37, 0.28)[content.count] * rng.uniform(0.94, 1.06)
    for cx, cy in _centres(content, rng):
        turn = math.radians(rng.uniform(-12, 12))
        cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
        u = (x - cx) * cos + (y - cy) * sin
        v = (y - cy) * cos - (x - cx) * sin
        np.minimum(field, _sample(_table(content.subject), u, v) * np.float32(radius), out=field)
    return field


def _centres(content: Content, rng: np.random.Generator) -> list[tuple[float, float]]:
    reach = (0.40, 0.48, 0.56)[content.count]
    cx, cy = ((-reach, 0), (reach, 0), (0, -reach), (0, reach), (0, 0))[content.place]
    step = (0.0, 0.44, 0.60)[content.count]
    offsets = ((0.0,), (-1.0, 1.0), (-1.0, 0.0, 1.0))[content.count]
    vertical = content.place in (0, 1)  # a column on the sides, a row elsewhere: both stay inside the picture
    jitter = rng.uniform(-0.035, 0.035, (len(offsets), 2))
    return [
        (cx + (0 if vertical else o * step) + j[0], cy + (o * step if vertical else 0) + j[1])
        for o, j in zip(offsets, jitter, strict=True)
    ]


def _sample(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear look-up; outside the table the distance to its border is added."""
    scale = (_TABLE_SIZE - 1) / (2 * _TABLE_REACH)
    limit = _TABLE_REACH * 0.999
    cu, cv = np.clip(u, -limit, limit), np.clip(v, -limit, limit)
    gu, gv = (cu + _TABLE_REACH) * scale, (cv + _TABLE_REACH) * scale
    iu, iv = gu.astype(np.int32), gv.astype(np.int32)
    fu, fv = (gu - iu).astype(np.float32), (gv - iv).astype(np.float32)
    flat, base = table.ravel(), iv * _TABLE_SIZE + iu
    top = flat[base] * (1 - fu) + flat[base + 1] * fu
    low = flat[base + _TABLE_SIZE] * (1 - fu) + flat[base + _TABLE_SIZE + 1] * fu
    return top * (1 - fv) + low * fv + np.hypot(u - cu, v - cv).astype(np.float32)


@functools.cache
def _table(subject: int) -> np.ndarray:
    axis = np.linspace(-_TABLE_REACH, _TABLE_REACH, _TABLE_SIZE)
    px, py = np.meshgrid(axis, axis)
    outline, *holes = _OUTLINES[SUBJECTS[subject]]()
    distance = _polygon_distance(outline, px, py)
    for hole in holes:
        distance = np.maximum(distance, -_polygon_distance(hole, px, py))
    return distance.astype(np.float32)


def _polygon_distance(points: np.ndarray, px: np.ndarray, py: np.ndarray) -> np.ndarray:
    nearest = np.full(px.shape, np.inf)
    inside = np.zeros(px.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((px - ax) * ex + (py - ay) * ey) / max(ex * ex + ey * ey, 1e-12), 0, 1)
        nearest = np.minimum(nearest, (px - ax - along * ex) ** 2 + (py - ay - along * ey) ** 2)
        crosses = (ay > py) != (by > py)
        if ay != by:
            inside ^= crosses & (px < (bx - ax) * (py - ay) / (by - ay) + ax)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


# Outlines: closed polygons in a unit circle, y down; the first is the body, the rest are holes in it.


def _disc(cx: float, cy: float, r: float, points: int = 24) -> np.ndarray:
    a = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return np.stack([cx + r * np.cos(a), cy + r * np.sin(a)], 1)


def _star() -> list[np.ndarray]:
    a = np.arange(10) * math.pi / 5 - math.pi / 2
    r = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
    return [np.stack([r * np.cos(a), r * np.sin(a)], 1)]


def _heart() -> list[np.ndarray]:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [np.stack([x / 17, y / 17 - 0.1], 1)]


def _moon() -> list[np.ndarray]:
    a = np.linspace(-0.72 * math.pi, 0.72 * math.pi, 40) + math.pi
    outer = np.stack([np.cos(a), np.sin(a)], 1)
    b = np.linspace(0.62 * math.pi, -0.62 * math.pi, 30) + math.pi
    inner = np.stack([0.42 + 0.86 * np.cos(b), 0.79 * np.sin(b)], 1)
    return [np.concatenate([outer, inner]) + np.array([0.15, 0.0])]


def _flower() -> list[np.ndarray]:
    a = np.linspace(0, 2 * math.pi, 90, endpoint=False)
    r = 0.72 + 0.30 * np.cos(6 * a)
    return [np.stack([r * np.cos(a), r * np.sin(a)], 1), _disc(0, 0, 0.24)]


def _fish() -> list[np.ndarray]:
    t = np.linspace(0.14 * math.pi, 1.86 * math.pi, 34)
    body = np.stack([-0.2 + 0.76 * np.cos(t), 0.56 * np.sin(t)], 1)
    tail = np.array([[1.02, -0.5], [0.86, 0.0], [1.02, 0.5]])
    return [np.concatenate([body, tail]), _disc(-0.58, -0.12, 0.1, 12)]


def _tree() -> list[np.ndarray]:
    half = [
        (0, -1.05),
        (0.42, -0.45),
        (0.24, -0.45),
        (0.62, 0.1),
        (0.36, 0.1),
        (0.78, 0.68),
        (0.14, 0.68),
        (0.14, 1.02),
    ]
    return [np.array(half + [(-x, y) for x, y in reversed(half[1:])])]


def _house() -> list[np.ndarray]:
    body = [(0, -1.0), (0.4, -0.6), (0.4, -0.9), (0.62, -0.9), (0.62, -0.38), (0.95, -0.05), (0.72, -0.05)]
    body += [(0.72, 0.9), (-0.72, 0.9), (-0.72, -0.05), (-0.95, -0.05)]
    door = [(0.08, 0.9), (0.08, 0.32), (0.44, 0.32), (0.44, 0.9)]
    window = [(-0.5, 0.1), (-0.12, 0.1), (-0.12, 0.48), (-0.5, 0.48)]
    return [np.array(body), np.array(door), np.array(window)]


def _mushroom() -> list[np.ndarray]:
    a = np.linspace(math.pi, 2 * math.pi, 26)
    cap = np.stack([0.98 * np.cos(a), 0.06 + 0.98 * np.sin(a)], 1)
    stem = np.array([(0.3, 0.06), (0.36, 0.92), (-0.36, 0.92), (-0.3, 0.06)])
    return [np.concatenate([cap, stem]), _disc(-0.38, -0.36, 0.17, 14), _disc(0.34, -0.46, 0.14, 14)]


_OUTLINES = {
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "flower": _flower,
    "fish": _fish,
    "tree": _tree,
    "house": _house,
    "mushroom": _mushroom,
}
