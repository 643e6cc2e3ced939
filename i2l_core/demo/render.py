"""Render pictures: (content, style) -> picture. Each technique is one function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .content import Content, distance_field
from .style import Style

SIZE = 128  # pixels a side


@dataclass(frozen=True)
class _Canvas:
    """What every technique paints with. Lengths in units of half the picture; arrays (SIZE, SIZE) float32."""

    d: np.ndarray  # signed distance to the figures, negative inside
    x: np.ndarray
    y: np.ndarray
    light: np.ndarray  # 0..1 across the picture, along the style's angle
    style: Style
    rng: np.random.Generator

    def cover(self, d: np.ndarray, soft: float = 1.0) -> np.ndarray:
        """Anti-aliased inside of a distance field; `soft` is the edge in pixels."""
        return np.clip(0.5 - d * (SIZE / 2) / soft, 0, 1)

    def noise(self, cells: int) -> np.ndarray:
        """Smooth noise, mean 0, about -1..1, with `cells` bumps a side."""
        grid = self.rng.uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
        t = np.linspace(0, cells, SIZE, dtype=np.float32)
        i, f = t.astype(int), t - t.astype(int)
        f = f * f * (3 - 2 * f)
        rows = grid[i] * (1 - f[:, None]) + grid[i + 1] * f[:, None]
        return rows[:, i] * (1 - f) + rows[:, i + 1] * f

    def turned(self, turns: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates rotated by `turns` of half a circle."""
        cos, sin = np.float32(np.cos(np.pi * turns)), np.float32(np.sin(np.pi * turns))
        return self.x * cos + self.y * sin, self.y * cos - self.x * sin


def render(content: Content, style: Style, rng: np.random.Generator) -> np.ndarray:
    """A picture (SIZE, SIZE, 3) float32 in 0..1. `rng` moves the figures and the grain, nothing of the style."""
    return paint(distance_field(content, SIZE, rng), style, rng)


def paint(d: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """The picture of figures given by their distance field (SIZE, SIZE), see `distance_field`."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    x, y = np.broadcast_to(axis[None, :], d.shape), np.broadcast_to(axis[:, None], d.shape)
    turn = 2 * np.pi * style.angle
    light = np.clip(0.5 + 0.42 * (x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))), 0, 1)
    picture = _PAINT[style.name](_Canvas(d, x, y, light, style, rng))
    return np.clip(picture, 0, 1).astype(np.float32)


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    return a + (b - a) * t[..., None]


def _poster(c: _Canvas) -> np.ndarray:
    s = c.style
    ground, figure = s.colour(s.ground_hue, 0.95, 0.6), s.colour(s.figure_hue, 0.85)
    shadow = s.colour(s.ground_hue, 0.5, 0.9)
    step = 0.05 + 0.10 * s.weight
    turn = 2 * np.pi * s.angle
    dx, dy = round(np.cos(turn) * step * SIZE / 2), round(np.sin(turn) * step * SIZE / 2)
    picture = _mix(np.broadcast_to(ground, (*c.d.shape, 3)), shadow, c.cover(_shift(c.d, dx, dy)))
    stripes = c.turned(s.angle)[0] > (0.9 - 0.9 * s.scale)  # a second flat tone across the ground
    picture = np.where(stripes[..., None] & (c.cover(c.d) < 0.5)[..., None], picture * 0.88, picture)
    return _mix(picture, figure, c.cover(c.d))


def _halftone(c: _Canvas) -> np.ndarray:
    s = c.style
    paper, ink = s.colour(s.ground_hue, 0.97, 0.35), s.colour(s.figure_hue, 0.6)
    period = (8 + 8 * s.scale) * 2 / SIZE
    u, v = c.turned(0.15 + 0.2 * s.angle)
    cu, cv = (u / period) % 1 - 0.5, (v / period) % 1 - 0.5
    tone = np.where(c.d < 0, 0.52 + 0.14 * s.weight + 0.22 * c.light, 0.02 + 0.24 * c.light**2)
    dots = np.clip(0.5 + (tone - np.hypot(cu, cv) * 1.25) * period * SIZE / 2.2, 0, 1)
    return _mix(np.broadcast_to(paper, (*c.d.shape, 3)), ink, dots)


def _hatching(c: _Canvas) -> np.ndarray:
    s = c.style
    paper, ink = s.colour(s.ground_hue, 0.97, 0.25), s.colour(s.figure_hue, 0.38, 0.9)
    period = (7.5 + 6 * s.scale) * 2 / SIZE
    wobble = c.noise(4) * 0.025
    lines = _stripes(c.turned(s.angle)[0] + wobble, period, 0.30 + 0.25 * s.weight)
    cross = _stripes(c.turned(s.angle + 0.5)[0] + wobble, period, 0.24 + 0.25 * s.weight)
    shade = np.maximum(lines, cross * (c.light > 0.5)) * c.cover(c.d, 2)
    outline = c.cover(np.abs(c.d + wobble * 0.6) - 0.015 - 0.03 * s.weight, 1.5)
    return _mix(np.broadcast_to(paper, (*c.d.shape, 3)), ink, np.maximum(shade, outline))


def _chalk(c: _Canvas) -> np.ndarray:
    s = c.style
    board, chalk = s.colour(s.ground_hue, 0.22, 0.55), s.colour(s.figure_hue, 0.95, 0.5)
    rough = c.d + c.noise(14) * (0.02 + 0.03 * s.scale)
    grain = np.clip(0.62 + 0.55 * c.noise(44), 0, 1)
    u = c.turned(s.angle)[0]
    rub = 0.55 + 0.45 * np.sin(2 * np.pi * (u + c.noise(5) * 0.05) / (0.16 + 0.2 * s.scale))
    fill = c.cover(rough, 5) * rub * (0.35 + 0.45 * s.weight)
    line = c.cover(np.abs(rough) - 0.03 - 0.03 * s.weight, 2)
    dusty = board + 0.05 * (c.noise(6) + 1)[..., None]
    return _mix(dusty, chalk, np.clip(np.maximum(fill, line) * grain, 0, 1))


def _neon(c: _Canvas) -> np.ndarray:
    s = c.style
    night, tube = s.colour(s.ground_hue, 0.12, 0.9), s.colour(s.figure_hue, 1.0)
    edge = np.abs(c.d)
    glow = np.exp(-edge / (0.06 + 0.14 * s.scale)) * (0.6 + 0.3 * s.weight)
    core = c.cover(edge - 0.02 - 0.03 * s.weight, 1.8)
    wall = s.colour(s.ground_hue, 0.30, 0.8) * np.clip(0.25 + 0.6 * c.light, 0, 1)[..., None]
    picture = np.maximum(night, wall) + tube * glow[..., None]
    return _mix(picture, 0.35 * tube + 0.65, core)


def _pixel(c: _Canvas) -> np.ndarray:
    s = c.style
    d = _blocks(c.d, 8)
    light = _blocks(c.light, 8 if s.scale < 0.5 else 16)
    ground = s.colour(s.ground_hue, 0.85, 0.55) * (0.78 + 0.22 * np.round(light * 3) / 3)[..., None]
    figure = s.colour(s.figure_hue, 0.95) * (0.6 + 0.4 * np.round((1 - light) * 2) / 2)[..., None]
    dark = s.colour(s.figure_hue, 0.25, 0.8)
    picture = np.where((d < 0.02 + 0.10 * s.weight)[..., None], dark, ground)
    return np.where((d < 0.02)[..., None], figure, picture)


def _woodcut(c: _Canvas) -> np.ndarray:
    s = c.style
    paper, ink = s.colour(s.ground_hue, 0.93, 0.45), s.colour(s.figure_hue, 0.25, 0.8)
    period = (9 + 7 * s.scale) * 2 / SIZE
    wobble = c.noise(5) * 0.03
    around = _stripes(c.d + wobble, period, 0.35 + 0.2 * s.weight)  # grain runs round the figure
    cut = _stripes(c.turned(s.angle)[0] + wobble, period, 0.25 + 0.15 * s.weight)
    inside = c.cover(c.d + 0.01)
    near = np.clip(1.25 - c.d / 0.34, 0, 1)  # the carver stops a little way out
    tone = np.clip(around - (1 - near), 0, 1) * (1 - inside) + (1 - cut * (c.light > 0.35)) * inside
    return _mix(np.broadcast_to(paper, (*c.d.shape, 3)), ink, tone)


def _watercolour(c: _Canvas) -> np.ndarray:
    s = c.style
    paper = np.array([0.97, 0.96, 0.93], np.float32)
    wash, tint = s.colour(s.figure_hue, 0.75, 0.9), s.colour(s.ground_hue, 0.92, 0.5)
    d = c.d + c.noise(6) * (0.03 + 0.06 * s.scale)
    pool = np.clip(0.6 + 0.35 * c.noise(5), 0.15, 1)
    rim = np.exp(-((d + 0.03) ** 2) / 0.0012) * (0.2 + 0.5 * s.weight)
    ground = _mix(
        np.broadcast_to(paper, (*d.shape, 3)), tint, np.clip(c.light * 0.9 + 0.3 * c.noise(3), 0, 1)
    )
    depth = np.clip(c.cover(d, 7) * pool + rim * c.cover(d, 4), 0, 1)
    return ground * (1 - depth[..., None] * (1 - wash))


def _blueprint(c: _Canvas) -> np.ndarray:
    s = c.style
    sheet, line = s.colour(s.ground_hue, 0.45, 1.0), s.colour(s.figure_hue, 1.0, 0.30)
    pitch = (16 + 10 * s.scale) * 2 / SIZE
    grid = np.maximum(_stripes(c.x, pitch, 0.09), _stripes(c.y, pitch, 0.09)) * 0.38
    contour = c.cover(np.abs(c.d) - 0.014 - 0.022 * s.weight, 1.4)
    offset = c.cover(np.abs(c.d - 0.11) - 0.008, 1.4) * 0.55
    hatch = _stripes(c.turned(s.angle)[0], 0.17, 0.28) * c.cover(c.d, 2) * 0.6
    return _mix(np.broadcast_to(sheet, (*c.d.shape, 3)), line, np.max([grid, contour, offset, hatch], axis=0))


def _glass(c: _Canvas) -> np.ndarray:
    s = c.style
    cells = round(7 - 3 * s.scale)
    seeds = (
        np.mgrid[0:cells, 0:cells].reshape(2, -1).T + c.rng.uniform(0.15, 0.85, (cells * cells, 2))
    ) / cells
    seeds = (seeds * 2 - 1).astype(np.float32)
    gap = (c.x[..., None] - seeds[:, 0]) ** 2 + (c.y[..., None] - seeds[:, 1]) ** 2
    nearest = np.argmin(gap, axis=-1)
    two = np.sqrt(np.partition(gap, 1, axis=-1)[..., :2])
    lead_width = 0.025 + 0.035 * s.weight
    seams = c.cover(two[..., 1] - two[..., 0] - lead_width, 1.5) * (c.d > 0)
    lead = np.maximum(seams, c.cover(np.abs(c.d) - 0.7 * lead_width, 1.5))
    shade = c.rng.uniform(0.72, 1.0, len(seeds)).astype(np.float32)[nearest] * (0.8 + 0.2 * c.light)
    pane = _mix(
        np.broadcast_to(s.colour(s.ground_hue, 0.95, 0.9), (*c.d.shape, 3)),
        s.colour(s.figure_hue, 1.0),
        c.cover(c.d),
    )
    return _mix(pane * shade[..., None], np.array([0.07, 0.06, 0.08], np.float32), lead)


def _clay(c: _Canvas) -> np.ndarray:
    s = c.style
    depth = 0.12 + 0.14 * s.scale
    height = np.sqrt(np.clip(1 - (1 - np.clip(-c.d / depth, 0, 1)) ** 2, 0, 1))
    gy, gx = np.gradient(height, 2 / SIZE)
    turn = 2 * np.pi * s.angle
    slope = gx * np.float32(np.cos(turn)) + gy * np.float32(np.sin(turn))
    shade = np.clip(0.66 + 0.07 * slope, 0.25, 1.15)
    shine = np.clip(slope * 0.12 - 0.35, 0, 1) * (0.3 + 0.5 * s.weight)
    dx, dy = round(-np.cos(turn) * 7), round(-np.sin(turn) * 7)
    shadow = c.cover(_shift(c.d, dx, dy), 16) * (0.25 + 0.35 * s.weight)
    table = s.colour(s.ground_hue, 0.88, 0.5) * (0.85 + 0.15 * c.light)[..., None]
    ground = table * (1 - shadow)[..., None]
    figure = s.colour(s.figure_hue, 0.95, 0.9) * shade[..., None] + shine[..., None]
    return _mix(ground, figure, c.cover(c.d, 1.5))


def _stripes(along: np.ndarray, period: float, duty: float) -> np.ndarray:
    """Anti-aliased lines: 1 on `duty` of each period."""
    phase = np.abs((along / period) % 1 - 0.5) * 2
    return np.clip(0.5 + (duty - phase) * period * SIZE / 4.4, 0, 1)


def _shift(field: np.ndarray, dx: int, dy: int) -> np.ndarray:
    return np.pad(field, 16, mode="edge")[16 - dy : 16 - dy + SIZE, 16 - dx : 16 - dx + SIZE]


def _blocks(field: np.ndarray, block: int) -> np.ndarray:
    n = SIZE // block
    means = field.reshape(n, block, n, block).mean((1, 3))
    return np.repeat(np.repeat(means, block, 0), block, 1)


_PAINT = {
    "poster": _poster,
    "halftone": _halftone,
    "hatching": _hatching,
    "chalk": _chalk,
    "neon": _neon,
    "pixel": _pixel,
    "woodcut": _woodcut,
    "watercolour": _watercolour,
    "blueprint": _blueprint,
    "glass": _glass,
    "clay": _clay,
}
