"""Stage `brightness`: a value template for the demo world's FLUX.2, as the published ones are built.

For each block, and for keys and values apart: waves of the value -> Linear, SiLU, Linear, one vector that is added to
a learned table of tokens. Every attention of the frozen network sees them beside its own.

What it learns is exact: the brighter picture of a latent z is s z + (1 - s) white, so the velocity of the frozen
network, asked at the noise level where z is mixed in the same proportion, gives the velocity of brighter pictures.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...demo import files
from ...demo.flux2 import Extras, Flux2Backbone, Flux2Config, KeysValues
from ..flow import draw_sigmas, noisy
from ..plan import Plan
from .backbone import pool_basis
from .data import draw_pictures, draw_prompts, latents_of, token_ids, train_pool
from .run import StageRun

TOKENS, WAVES = 16, 64
NEUTRAL = 0.5
_REACH = 0.6  # at 0 and 1 a picture has lost this share of its distance from black or white


class ValueTemplate(nn.Module):
    """A value 0..1 -> keys and values of every block."""

    def __init__(self, config: Flux2Config, tokens: int = TOKENS, waves: int = WAVES) -> None:
        super().__init__()
        self.blocks = [f"double_{i}" for i in range(config.depth)]
        self.blocks += [f"single_{i}" for i in range(config.depth_single_blocks)]
        self.heads, self.waves = config.num_heads, waves
        wide = config.hidden_size
        self.parts = nn.ModuleList(_Part(wide, tokens, waves) for _ in range(2 * len(self.blocks)))

    def forward(self, value: Tensor) -> dict[str, KeysValues]:
        """Values (B,) -> block -> keys and values (B, tokens, heads, head_dim)."""
        half = self.waves // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = 1000 * value[:, None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        made = [part(waves).unflatten(-1, (self.heads, -1)) for part in self.parts]
        return {block: (made[2 * i], made[2 * i + 1]) for i, block in enumerate(self.blocks)}


class _Part(nn.Module):
    def __init__(self, wide: int, tokens: int, waves: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(waves, wide), nn.Linear(wide, wide)
        self.table = nn.Parameter(torch.randn(tokens, wide) * 0.5)

    def forward(self, waves: Tensor) -> Tensor:
        """(B, waves) -> (B, tokens, wide)"""
        return self.linear_2(F.silu(self.linear_1(waves)))[:, None] + self.table


def train(
    folder: Path, plan: Plan, network: Flux2Backbone, text: nn.Module
) -> tuple[StageRun, ValueTemplate]:
    """Through the frozen network, whose own velocity is the goal."""
    pool, basis = train_pool(), pool_basis()
    latents = latents_of(pool, basis)
    network.requires_grad_(False)
    text.requires_grad_(False)
    torch.manual_seed(plan.seed)
    template = ValueTemplate(network.config)
    run = StageRun(folder, plan, {"template": template}, lambda name, p: False)
    ends = basis.encode(
        torch.stack([torch.zeros(8, 8, 3), torch.ones(8, 8, 3)])
    )  # black, white: (2, C, 1, 1)

    def goal(
        z: Tensor, noise: Tensor, sigma: Tensor, context: Tensor, s: Tensor, end: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Noisy latent of the changed picture, and the velocity of the frozen network there."""
        a = (1 - sigma.view(-1, 1, 1, 1)) * s
        both = a + sigma.view(-1, 1, 1, 1)
        level = sigma.view(-1, 1, 1, 1) / both
        y = (a * z + sigma.view(-1, 1, 1, 1) * noise) / both
        with torch.no_grad():
            v = network(y, level.flatten(), context)
        clean, found_noise = y - level * v, y + (1 - level) * v
        x = noisy(s * z + (1 - s) * end, noise, sigma)
        return x, found_noise - (s * clean + (1 - s) * end)

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        prompts = draw_prompts(pool, styles, rows, rng)
        z = latents[styles, rows].float()
        sigma = draw_sigmas(plan.batch, generator)
        noise = torch.randn(z.shape, generator=generator)
        value = torch.rand(plan.batch, generator=generator)
        s = (1 - _REACH * (2 * value - 1).abs()).view(-1, 1, 1, 1)
        end = ends[(value > NEUTRAL).long()]
        context = text(token_ids(prompts))
        x, wanted = goal(z, noise, sigma, context, s, end)
        found = network(x, sigma, context, Extras(cache=template(value)))
        return (found - wanted).square().mean()

    run.train(loss)
    return run, template


def save(folder: Path, template: ValueTemplate) -> Path:
    """As the published ones are, in bfloat16; the width of a head in the metadata."""
    tensors = {}
    pairs = zip(list(template.parts)[::2], list(template.parts)[1::2], strict=True)
    for block, pair in zip(template.blocks, pairs, strict=True):
        for which, part in zip("kv", pair, strict=True):
            place = f"proj_{which}.{block}"
            for n, name in ((0, "linear_1"), (2, "linear_2")):
                for kind, tensor in getattr(part, name).named_parameters():
                    tensors[f"{place}.prefer_value_embedder.{n}.{kind}"] = tensor
            tensors[f"{place}.positional_embedding"] = part.table
    kept = {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}
    head_dim = next(iter(kept.values())).shape[0] // template.heads
    path = folder / files.BRIGHTNESS
    save_file(kept, path, {"head_dim": str(head_dim)})
    return path
