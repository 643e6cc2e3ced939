"""The training data of the stages: latents of the pool, and random prompts for its pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...demo.autoencoder import PatchBasis
from ...demo.content import Content
from ...demo.pool import POOL_FOLDER, Pool, PoolConfig, open_pool
from ...demo.prompts import content_prompt, style_prompt, tokenise
from ...demo.style import Style

TRAIN_POOL = PoolConfig(styles=6000, per_style=8, seed=1, held_out=False)
# The judge is an instrument, not a contestant: it must read every content and style there is. Trained on one side of
# the split it never names a subject in a place where it has not met it.
JUDGE_POOL = PoolConfig(styles=2500, per_style=8, seed=4, held_out=None)
TEST_POOL = PoolConfig(styles=192, per_style=8, seed=2, held_out=True)


def train_pool() -> Pool:
    return open_pool(POOL_FOLDER, TRAIN_POOL)


def judge_pool() -> Pool:
    return open_pool(POOL_FOLDER, JUDGE_POOL)


def test_pool() -> Pool:
    return open_pool(POOL_FOLDER, TEST_POOL)


def latents_of(pool: Pool, basis: PatchBasis, block: int = 250) -> Tensor:
    """Latents of a whole pool (styles, per_style, 16, 16, 16) float16: a tenth of the pictures' size."""
    out = []
    for start in range(0, len(pool.styles), block):
        pictures = torch.from_numpy(pool.pictures[start : start + block].copy()).flatten(0, 1).float() / 255
        out.append(basis.encode(pictures).half())
    return torch.cat(out).unflatten(0, (len(pool.styles), -1))


def draw_pictures(pool: Pool, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The style and the row of `count` random pictures of a pool."""
    return rng.integers(len(pool.styles), size=count), rng.integers(pool.pictures.shape[1], size=count)


def draw_prompts(pool: Pool, styles: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
    """A random prompt for each of these pictures."""
    return [draw_prompt(pool.contents[s][r], pool.styles[s], rng) for s, r in zip(styles, rows, strict=True)]


def draw_prompt(content: Content, style: Style, rng: np.random.Generator) -> str:
    """A random prompt: with or without words for the style, only the style, or empty (for CFG)."""
    u = rng.uniform()
    if u < 0.10:
        return ""
    if u < 0.55:
        return content_prompt(content)
    if u < 0.95:
        return f"{content_prompt(content)}, {style_prompt(style)}"
    return style_prompt(style)


def token_ids(prompts: list[str]) -> Tensor:
    return torch.tensor([tokenise(p) for p in prompts])
