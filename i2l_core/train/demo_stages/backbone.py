"""Stage `backbone`: the diffusion backbone and its text encoder, from scratch, on every style of the train pool.

In the middle of the network a small head predicts from the image tokens where the figures are. Figures look different
in every technique, but their outlines are the same, so this teaches shapes for all techniques at once (as
representation alignment does, arXiv 2410.06940, here with masks of the generator). The head is not exported.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.autoencoder import PatchBasis, fit_basis
from ...demo.backbone import Backbone, BackboneConfig
from ...demo.text import TextEncoder
from ..flow import draw_sigmas, noisy, velocity
from ..plan import Plan
from .data import draw_pictures, draw_prompts, latents_of, token_ids, train_pool
from .run import StageRun

_TAP = 3  # the layer whose tokens the head reads
_CELLS = 8  # mask cells a side of a token (of 2x2 pixels)
_MASK_WEIGHT = 0.3


class MaskHead(nn.Module):
    """Image tokens (B, T, dim) -> logits (B, T, cells * cells) of the figures' cover."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, _CELLS * _CELLS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(tokens))


def mask_targets(masks: Tensor) -> Tensor:
    """(B, H, W) uint8 covers -> (B, T, cells * cells) in 0..1, cells grouped by token in row order."""
    b, h, w = masks.shape
    cells = masks.view(b, h // _CELLS, _CELLS, w // _CELLS, _CELLS).permute(0, 1, 3, 2, 4)
    return cells.reshape(b, -1, _CELLS * _CELLS).float() / 255


def build(config: BackboneConfig, seed: int) -> tuple[Backbone, TextEncoder]:
    """New networks: every block is initialised as the identity, the output as zero."""
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
    """Whether Muon updates this parameter: matrices inside blocks, but not embeddings, modulation or output."""
    return p.ndim == 2 and (".attention." in name or ".feed_forward." in name)


def train(
    folder: Path,
    plan: Plan,
    config: BackboneConfig,
    compiled: bool,
    start: tuple[Backbone, TextEncoder] | None = None,
) -> tuple[StageRun, Backbone, TextEncoder]:
    """Train with flow matching on latents of the pool and random prompts; the text encoder is trained too.

    `start`: trained networks to go on from, for a new run; a run that has a checkpoint ignores it.
    """
    pool = train_pool()
    basis = pool_basis()
    latents = latents_of(pool, basis)
    backbone, text = build(config, plan.seed)
    if start is not None:
        backbone.load_state_dict(start[0].state_dict())
        text.load_state_dict(start[1].state_dict())
    head = MaskHead(config.dim)
    run = StageRun(folder, plan, {"backbone": backbone, "text": text, "mask": head}, is_hidden_matrix)

    def forward(
        x: Tensor, sigma: Tensor, ids: Tensor, target: Tensor, cover: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity, tokens = backbone.forward_tapped(x, sigma, text(ids), tap=_TAP)
        return (velocity - target).square().mean(), F.binary_cross_entropy_with_logits(head(tokens), cover)

    step_loss = torch.compile(forward) if compiled else forward

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        x = latents[styles, rows].float()
        ids = token_ids(draw_prompts(pool, styles, rows, rng))
        noise = torch.randn(x.shape, generator=generator)
        sigma = draw_sigmas(plan.batch, generator)
        cover = mask_targets(torch.from_numpy(pool.masks[styles, rows]))
        flow, outline = step_loss(noisy(x, noise, sigma), sigma, ids, velocity(x, noise), cover)
        parts.update(flow=round(float(flow.detach()), 4), outline=round(float(outline.detach()), 4))
        return flow + _MASK_WEIGHT * outline

    parts: dict[str, float] = {}
    run.train(loss, [(1, lambda step: dict(parts))])
    return run, backbone, text


def pool_basis() -> PatchBasis:
    """The latent space: principal components over a fixed sample of the train pool."""
    pool = train_pool()
    return fit_basis(torch.from_numpy(pool.pictures[:2000, 0].copy()).float() / 255)
