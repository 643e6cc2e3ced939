"""Stages `vision` and `judge`: networks that read the style of generated pictures.

`vision` trains the encoder of the predictor on style factors; afterwards it is frozen, as SigLIP2 is in the paper.
`judge` trains the network that measures results, separately, on other pictures, with contents and styles of both
sides of the split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.content import PARTS
from ...demo.judge import Judge
from ...demo.pool import Pool
from ...demo.style import TECHNIQUES
from ...encoders import SQUARE, EncoderConfig, VisionEncoder
from ..plan import Plan
from .data import draw_pictures, judge_pool, test_pool, train_pool
from .run import StageRun

ENCODER = EncoderConfig(
    kind=SQUARE,
    config={
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 16,
        "image_size": 128,
    },
    image_size=128,
)


class StyleReader(nn.Module):
    """Head for training the encoder: mean of its tokens -> technique and factors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.technique = nn.Linear(width, len(TECHNIQUES))
        self.factors = nn.Linear(width, 9)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        pooled = tokens.mean(1)
        return self.technique(pooled), self.factors(pooled)


def train_encoder(folder: Path, plan: Plan) -> tuple[StageRun, VisionEncoder]:
    torch.manual_seed(plan.seed)
    pool, unseen = train_pool(), test_pool()
    encoder, reader = VisionEncoder(ENCODER), StyleReader(ENCODER.config["hidden_size"])
    run = StageRun(
        folder, plan, {"encoder": encoder, "reader": reader}, lambda k, p: p.ndim == 2 and ".layers." in k
    )

    def score(pictures: Tensor, technique: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        logits, points = reader(encoder(pictures * 2 - 1))
        return F.cross_entropy(logits, technique) + 4 * F.mse_loss(points, factors), logits

    def loss(step: int) -> Tensor:
        rng, _ = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        return score(_pictures(pool, styles, rows), *_style_labels(pool, styles))[0]

    @torch.no_grad()
    def measure(step: int) -> dict:
        styles, rows = np.arange(len(unseen.styles)), np.zeros(len(unseen.styles), int)
        technique, factors = _style_labels(unseen, styles)
        value, logits = score(_pictures(unseen, styles, rows), technique, factors)
        return {
            "unseen_loss": float(value),
            "unseen_technique": float((logits.argmax(1) == technique).float().mean()),
        }

    run.train(loss, [(200, measure)])
    return run, encoder


def train_judge(folder: Path, plan: Plan) -> tuple[StageRun, Judge]:
    torch.manual_seed(plan.seed)
    pool, unseen = judge_pool(), test_pool()
    judge = Judge()
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = StageRun(folder, plan, {"judge": judge}, lambda k, p: False)

    def loss(step: int) -> Tensor:
        rng, _ = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        verdict = judge(_pictures(pool, styles, rows))
        technique, factors = _style_labels(pool, styles)
        subject, count, place = _content_labels(pool, styles, rows)
        return (
            F.cross_entropy(verdict.subject, subject)
            + F.cross_entropy(verdict.count, count)
            + F.cross_entropy(verdict.place, place)
            + F.cross_entropy(verdict.technique, technique)
            + 4 * F.mse_loss(verdict.factors, factors)
        )

    @torch.no_grad()
    def measure(step: int) -> dict:
        styles = np.repeat(np.arange(len(unseen.styles)), 2)
        rows = np.tile([0, 1], len(unseen.styles))
        verdict = judge(_pictures(unseen, styles, rows))
        technique, factors = _style_labels(unseen, styles)
        subject, count, place = _content_labels(unseen, styles, rows)
        right = {
            "subject": (verdict.subject.argmax(1) == subject),
            "count": (verdict.count.argmax(1) == count),
            "place": (verdict.place.argmax(1) == place),
            "technique": (verdict.technique.argmax(1) == technique),
        }
        figures = {f"unseen_{k}": round(float(v.float().mean()), 4) for k, v in right.items()}
        return figures | {"unseen_factor_error": round(float(F.mse_loss(verdict.factors, factors)), 4)}

    run.train(loss, [(200, measure)])
    return run, judge


def _pictures(pool: Pool, styles: np.ndarray, rows: np.ndarray) -> Tensor:
    """(B, 3, H, W) float 0..1, channels last in memory."""
    return torch.from_numpy(pool.pictures[styles, rows]).permute(0, 3, 1, 2).float() / 255  # BHWC -> BCHW


def _style_labels(pool: Pool, styles: np.ndarray) -> tuple[Tensor, Tensor]:
    technique = torch.tensor([pool.styles[s].technique for s in styles])
    return technique, torch.from_numpy(np.stack([pool.styles[s].factors() for s in styles]))


def _content_labels(pool: Pool, styles: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    contents = [pool.contents[s][r] for s, r in zip(styles, rows, strict=True)]
    return tuple(torch.tensor([getattr(c, f) for c in contents]) for f in PARTS)  # type: ignore
