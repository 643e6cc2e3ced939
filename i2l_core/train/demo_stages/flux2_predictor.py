"""Stage `flux2_predictor`: a small predictor for the demo world's FLUX.2, taught by the one of the backbone.

The same references go through both predictors, and the same noisy latents through both styled networks; what the
teacher's network answers is the goal. It has no noise of its own, so this takes minutes where the paper's loss
(eq. 6) takes hours. `python -m i2l_core train` trains predictors for networks that have no such teacher.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...demo import files
from ...demo.backbone import LayerPair
from ...demo.flux2 import Extras, Flux2Backbone, Flux2Config
from ...demo.prompts import content_prompt
from ...predictors.query.config import LayerSpec, QueryConfig
from ...predictors.query.file import load_predictor
from ...predictors.query.network import QueryNetwork
from ...references import GRAY
from ..flow import draw_sigmas, noisy
from ..plan import Plan
from .backbone import pool_basis
from .data import latents_of, token_ids, train_pool
from .run import StageRun

LoRAs = dict[str, LayerPair]  # weight -> (down (S, k, d_in), up (S, d_out, k))

TARGETS = 6  # noisy latents of each style in a step
_MOST_REFERENCES = 4
_GRAY_SHARE = 0.06  # share of steps with gray references
_NO_PROMPT = 0.1


def adapted_layers(c: Flux2Config) -> tuple[LayerSpec, ...]:
    """Every Linear of attention and MLP in every block."""
    wide, mlp = c.hidden_size, c.mlp
    shapes = {
        "attn.qkv": (wide, 3 * wide),
        "attn.proj": (wide, wide),
        "mlp.0": (wide, 2 * mlp),
        "mlp.2": (mlp, wide),
    }
    layers = [
        LayerSpec(f"double_blocks.{i}.{stream}_{name}", None, *shape)
        for i in range(c.depth)
        for stream in ("img", "txt")
        for name, shape in shapes.items()
    ]
    for i in range(c.depth_single_blocks):
        layers.append(LayerSpec(f"single_blocks.{i}.linear1", None, wide, 3 * wide + 2 * mlp))
        layers.append(LayerSpec(f"single_blocks.{i}.linear2", None, wide + mlp, wide))
    return tuple(layers)


def train(folder: Path, plan: Plan, network: Flux2Backbone, compiled: bool) -> tuple[StageRun, QueryNetwork]:
    """`plan.batch`: styles in a step."""
    pool = train_pool()
    latents = latents_of(pool, pool_basis())
    backbone, text = files.load_backbone()
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    teacher, encoder = loaded.predictor.float(), loaded.encoder.float()
    for frozen in (network, backbone, text, teacher):
        frozen.requires_grad_(False)
    torch.manual_seed(plan.seed)
    predictor = QueryNetwork(
        QueryConfig(
            hidden=128, blocks=2, heads=4, code=24, rank=4, token_dim=loaded.config.token_dim,
            layers=adapted_layers(network.config),
        )
    )  # fmt: skip
    run = StageRun(folder, plan, {"predictor": predictor}, lambda name, p: p.ndim == 2 and ".blocks." in name)

    def teach(x: Tensor, sigma: Tensor, context: Tensor, lora: LoRAs) -> Tensor:
        with torch.no_grad():
            return backbone(x, sigma, context, lora)

    def learn(x: Tensor, sigma: Tensor, context: Tensor, lora: LoRAs, goal: Tensor) -> Tensor:
        return (network(x, sigma, context, Extras(lora=lora)) - goal).square().mean()

    if compiled:  # not the predictors: the number of references changes
        teach, learn = torch.compile(teach), torch.compile(learn)

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles = rng.integers(len(pool.styles), size=plan.batch)
        order = rng.permuted(np.tile(np.arange(latents.shape[1]), (plan.batch, 1)), axis=1)
        seen, drawn = order[:, : 1 + step % _MOST_REFERENCES], order[:, -TARGETS:]
        pictures = (
            torch.from_numpy(pool.pictures[styles[:, None], seen]).flatten(0, 1).movedim(-1, 1).float() / 255
        )
        if rng.uniform() < _GRAY_SHARE:
            pictures = torch.full_like(pictures, GRAY)
        with torch.no_grad():
            tokens = encoder(pictures * 2 - 1).unflatten(0, seen.shape).flatten(1, 2)
            shown = _pairs(teacher, tokens)
        prompts = [
            "" if rng.uniform() < _NO_PROMPT else content_prompt(pool.contents[s][r])
            for s, row in zip(styles, drawn, strict=True)
            for r in row
        ]
        clean = latents[styles[:, None], drawn].flatten(0, 1).float()
        sigma = draw_sigmas(len(clean), generator)
        x = noisy(clean, torch.randn(clean.shape, generator=generator), sigma)
        context = text(token_ids(prompts))
        goal = teach(x, sigma, context, shown)
        return learn(x, sigma, context, _pairs(predictor, tokens), goal)

    run.train(loss)
    return run, predictor


def _pairs(predictor: nn.Module, tokens: Tensor) -> LoRAs:
    return {target.weight: pair for target, pair in predictor(tokens).layers().items()}


def save(folder: Path, predictor: QueryNetwork, step: int) -> Path:
    """bfloat16, without the encoder: it is that of the other predictor, and 3 MB."""
    return files.save_flux2_predictor(folder, predictor.config.to_json(), predictor.state_dict(), step)
