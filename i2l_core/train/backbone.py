"""Stage `backbone`: the diffusion backbone and its text encoder, from scratch, on every style of the train pool."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..demo.autoencoder import PatchBasis, fit_basis
from ..demo.backbone import Backbone, BackboneConfig
from ..demo.text import TextEncoder
from .data import draw_prompt, latents_of, token_ids, train_pool
from .flow import draw_sigmas, noisy, velocity
from .run import Plan, Run


def build(config: BackboneConfig, seed: int) -> tuple[Backbone, TextEncoder]:
    """Fresh networks: every block starts as the identity, the output as zero."""
    torch.manual_seed(seed)
    backbone, text = Backbone(config), TextEncoder()
    for name, p in backbone.named_parameters():
        if "adaLN" in name or name.startswith("final_layer.linear"):
            nn.init.zeros_(p)
        elif p.ndim == 2 and "pad_token" not in name:
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    return backbone, text


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Which parameters Muon takes: the matrices inside blocks, not embeddings, modulation or the output."""
    return p.ndim == 2 and (".attention." in name or ".feed_forward." in name)


def train(
    folder: Path, plan: Plan, config: BackboneConfig, compiled: bool
) -> tuple[Run, Backbone, TextEncoder]:
    """Flow matching on pool latents with drawn prompts; the text encoder learns along."""
    pool = train_pool()
    basis = pool_basis()
    latents = latents_of(pool, basis)
    backbone, text = build(config, plan.seed)
    run = Run(folder, plan, {"backbone": backbone, "text": text}, is_hidden_matrix)

    def forward(x: Tensor, sigma: Tensor, ids: Tensor, target: Tensor) -> Tensor:
        return (backbone(x, sigma, text(ids)) - target).square().mean()

    step_loss = torch.compile(forward) if compiled else forward

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles = rng.integers(len(pool.styles), size=plan.batch)
        rows = rng.integers(latents.shape[1], size=plan.batch)
        x = latents[styles, rows].float()
        ids = token_ids(
            [draw_prompt(pool.contents[s][r], pool.styles[s], rng) for s, r in zip(styles, rows, strict=True)]
        )
        noise = torch.randn(x.shape, generator=generator)
        sigma = draw_sigmas(plan.batch, generator)
        return step_loss(noisy(x, noise, sigma), sigma, ids, velocity(x, noise))

    run.train(loss)
    return run, backbone, text


def pool_basis() -> PatchBasis:
    """The latent space: principal components over a fixed sample of the train pool."""
    pool = train_pool()
    return fit_basis(torch.from_numpy(pool.pictures[:2000, 0].copy()).float() / 255)
