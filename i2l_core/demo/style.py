"""The style of a picture of the demo world: technique, palette and continuous factors."""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import astuple, dataclass, fields

import numpy as np

TECHNIQUES = (
    "poster", "halftone", "hatching", "chalk", "neon", "pixel",
    "woodcut", "watercolour", "blueprint", "glass", "clay",
)  # fmt: skip

# Hue in turns at the middle of each named band; names are what prompts use.
HUE_NAMES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
HUE_CENTRES = (0.0, 0.075, 0.145, 0.34, 0.49, 0.61, 0.76, 0.89)

_HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class Style:
    """One style. Every factor but `technique` is continuous."""

    technique: int  # index into TECHNIQUES
    figure_hue: float  # turns, 0..1
    ground_hue: float  # turns, 0..1
    vividness: float  # 0 muted .. 1 saturated
    scale: float  # 0 fine .. 1 coarse texture
    angle: float  # turns of half a circle, 0..1: direction of texture and light
    weight: float  # 0 thin .. 1 bold strokes, outlines, shadows

    def __post_init__(self) -> None:
        if not 0 <= self.technique < len(TECHNIQUES):
            raise ValueError(f"technique: expected 0..{len(TECHNIQUES) - 1}, got {self.technique}")
        for field in fields(self)[1:]:
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"{field.name}: expected 0..1, got {getattr(self, field.name)}")

    @property
    def name(self) -> str:
        return TECHNIQUES[self.technique]

    @property
    def held_out(self) -> bool:
        """Whether the style is held out. Technique and palette decide, so whole regions are held out."""
        key = f"{self.name}/{hue_name(self.figure_hue)}/{hue_name(self.ground_hue)}"
        return zlib.crc32(key.encode()) % 1000 < 1000 * _HELD_OUT_SHARE

    def factors(self) -> np.ndarray:
        """Continuous factors as a vector without jumps: hues and angle on circles. (9,) float32."""
        turn = 2 * np.pi * np.array([self.figure_hue, self.ground_hue, self.angle])
        plain = np.array([self.vividness, self.scale, self.weight]) * 2 - 1
        return np.concatenate([np.cos(turn), np.sin(turn), plain]).astype(np.float32)

    def colour(self, hue: float, value: float, saturation: float = 1.0) -> np.ndarray:
        """RGB 0..1 of a hue at a lightness; vividness scales the saturation."""
        s = saturation * (0.45 + 0.55 * self.vividness)
        return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(s, 0), 1), min(max(value, 0), 1)), np.float32)

    def as_tuple(self) -> tuple:
        return astuple(self)


def sample_style(rng: np.random.Generator, held_out: bool | None) -> Style:
    """Draws styles until one lies on the wanted side of the split (None: on any). The two hues never coincide."""
    while True:
        figure = rng.uniform()
        ground = (figure + rng.uniform(0.18, 0.82)) % 1
        style = Style(int(rng.integers(len(TECHNIQUES))), figure, ground, *rng.uniform(size=4))
        if held_out is None or style.held_out == held_out:
            return style


def hue_name(hue: float) -> str:
    gaps = [min(abs(hue - c) % 1, 1 - abs(hue - c) % 1) for c in HUE_CENTRES]
    return HUE_NAMES[int(np.argmin(gaps))]
