"""Stage `flux2`: the demo world's FLUX.2, a network of another class that learns from the trained backbone.

The teacher's velocity has no noise of its own, unlike that of flow matching, so a step teaches several times more. An
inner layer learns the teacher's tokens as well (representation alignment, arXiv 2410.06940). Text encoder and latents
are the backbone's; they stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo import files
from ...demo.flux2 import Flux2Backbone, Flux2Config
from ..flow import draw_sigmas, noisy
from ..plan import Plan
from .backbone import pool_basis
from .data import draw_pictures, draw_prompts, latents_of, token_ids, train_pool
from .run import StageRun

_TEACHER_TAP, _TAP = 3, 3  # the layers whose tokens are compared
_TOKEN_WEIGHT = 0.25


class TokenHead(nn.Module):
    """Tokens (B, T, dim) -> the teacher's tokens, normalised (B, T, dim of the teacher)."""

    def __init__(self, dim: int, teacher: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, teacher)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(tokens))


def build(config: Flux2Config, seed: int) -> Flux2Backbone:
    """A new network: every block is the identity, the output zero."""
    torch.manual_seed(seed)
    network = Flux2Backbone(config)
    for name, p in network.named_parameters():
        if "odulation" in name or name.startswith("final_layer"):
            nn.init.zeros_(p)
        elif p.ndim == 2:
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return network


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon updates this parameter: matrices inside blocks."""
    return p.ndim == 2 and "_blocks." in name


def train(folder: Path, plan: Plan, config: Flux2Config, compiled: bool) -> tuple[StageRun, Flux2Backbone]:
    """Learn the velocity of the demo world's backbone on latents of the pool and random prompts."""
    pool = train_pool()
    latents = latents_of(pool, pool_basis())
    teacher, text = files.load_backbone()
    for frozen in (teacher, text):
        frozen.requires_grad_(False)
    network = build(config, plan.seed)
    head = TokenHead(config.hidden_size, teacher.config.dim)
    run = StageRun(folder, plan, {"flux2": network, "head": head}, is_hidden_matrix)

    def teach(x: Tensor, sigma: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            velocity, tokens = teacher.forward_tapped(x, sigma, context, tap=_TEACHER_TAP)
            return velocity, F.layer_norm(tokens, tokens.shape[-1:])

    def learn(
        x: Tensor, sigma: Tensor, context: Tensor, velocity: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor]:
        mine, tokens = network.forward_tapped(x, sigma, context, tap=_TAP)
        return (mine - velocity).square().mean(), (head(tokens) - goal).square().mean()

    if compiled:
        teach, learn = torch.compile(teach), torch.compile(learn)
    parts: dict[str, float] = {}

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        prompts = draw_prompts(pool, styles, rows, rng)
        clean = latents[styles, rows].float()
        sigma = draw_sigmas(plan.batch, generator)
        x = noisy(clean, torch.randn(clean.shape, generator=generator), sigma)
        context = text(token_ids(prompts))
        flow, tokens = learn(x, sigma, context, *teach(x, sigma, context))
        parts.update(flow=round(float(flow.detach()), 4), tokens=round(float(tokens.detach()), 4))
        return flow + _TOKEN_WEIGHT * tokens

    run.train(loss, [(1, lambda step: dict(parts))])
    return run, network
