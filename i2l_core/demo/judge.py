"""The judge of the demo world: reads content and style factors of a picture, to measure generated pictures.

It is trained only on pictures of the generator (of both sides of the held-out split), shares nothing with the encoder
of the predictor, and no network is trained through it. Style distance is a distance between known factors, not between
learned features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .content import COUNTS, PLACES, SUBJECTS
from .style import TECHNIQUES

FACTORS = ("figure hue", "ground hue", "angle", "vividness", "scale", "weight")
# How much each factor counts in the distance. Angle and weight are faint in some techniques, so they count less.
_WEIGHTS = {
    "technique": 1.0,
    "figure hue": 1.0,
    "ground hue": 1.0,
    "angle": 0.25,
    "vividness": 0.5,
    "scale": 0.5,
    "weight": 0.25,
}


@dataclass(frozen=True)
class Verdict:
    """The readings of B pictures. Class scores are logits; factors are vectors as in `Style.factors`."""

    subject: Tensor  # (B, 8)
    count: Tensor  # (B, 3)
    place: Tensor  # (B, 5)
    technique: Tensor  # (B, 11)
    factors: Tensor  # (B, 9): cosines and sines of the circular factors, then the plain ones in -1..1


class Judge(nn.Module):
    """Pictures (B, 3, 128, 128) in 0..1 -> Verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _down(3, 24), _down(24, 48), _Residual(48), _down(48, 96), _Residual(96), _down(96, 160), _Residual(160)
        )  # fmt: skip
        self.content = nn.Sequential(
            nn.Conv2d(160, 64, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 256), nn.ReLU()
        )
        self.subject, self.count, self.place = (nn.Linear(256, len(w)) for w in (SUBJECTS, COUNTS, PLACES))
        self.style = nn.Sequential(nn.Linear(320, 256), nn.ReLU())
        self.technique = nn.Linear(256, len(TECHNIQUES))
        self.factors = nn.Linear(256, 9)

    def forward(self, pictures: Tensor) -> Verdict:
        x = self.body(pictures * 2 - 1)
        content = self.content(x)
        style = self.style(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return Verdict(
            self.subject(content),
            self.count(content),
            self.place(content),
            self.technique(style),
            self.factors(style),
        )


def style_parts(verdict: Verdict) -> dict[str, Tensor]:
    """One vector per factor, scaled so that the largest distance inside a factor is about 1."""
    c, s = verdict.factors[:, 0:3], verdict.factors[:, 3:6]
    circles = torch.stack([c, s], -1)
    circles = circles / circles.norm(dim=-1, keepdim=True).clamp_min(1.0)
    parts = {"technique": verdict.technique.softmax(-1) / 2**0.5}
    parts |= {name: circles[:, i] / 2 for i, name in enumerate(FACTORS[:3])}
    return parts | {
        name: verdict.factors[:, 6 + i, None].clamp(-1, 1) / 2 for i, name in enumerate(FACTORS[3:])
    }


def style_distance(a: Verdict, b: Verdict) -> Tensor:
    """Weighted mean of the distances per factor, row by row: (B,), 0 the same style .. about 1 opposite in all."""
    left, right = style_parts(a), style_parts(b)
    total = sum(_WEIGHTS[k] * (left[k] - right[k]).norm(dim=-1) for k in left)
    return torch.as_tensor(total) / sum(_WEIGHTS.values())


def _down(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, 2, 1), nn.GroupNorm(8, n_out), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.net(x))
