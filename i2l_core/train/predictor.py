"""Stage `predictor`: image-to-LoRA, trained through the frozen backbone (paper, eq. 6 and section 3.3).

References and targets share the style and never the content; the prompt tells the target's content and no style.
One predicted LoRA serves several targets and noise levels, because predicting costs as much as four of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..demo.autoencoder import PatchBasis
from ..demo.backbone import Backbone, BackboneConfig, LayerPair
from ..demo.pool import Pool
from ..demo.prompts import content_prompt
from ..demo.text import TextEncoder
from ..encoders import VisionEncoder
from ..images import GRAY
from ..predictors.query import LayerSpec, QueryConfig, QueryPredictor
from .data import latents_of, test_pool, token_ids, train_pool
from .flow import draw_sigmas, noisy, velocity
from .run import Plan, Run


@dataclass(frozen=True)
class Pairing:
    """How a batch of styles is made."""

    targets: int = 6  # noisy targets for each predicted LoRA
    most_references: int = 4
    empty_prompts: float = (
        0.15  # share of targets with no prompt, so that both guidance branches know the LoRA
    )
    gray: float = 0.04  # share of rows whose references are gray and whose targets are of any style
    same_content: bool = False  # targets are references themselves: only to show why they must not be

    def __post_init__(self) -> None:
        if self.targets < 1 or self.most_references < 1 or not 0 <= self.empty_prompts + self.gray < 1:
            raise ValueError(f"impossible pairing: {self}")


def adapted_layers(config: BackboneConfig) -> tuple[LayerSpec, ...]:
    """Every attention and feed-forward Linear of every block, qkv as the host keeps it: fused."""
    shapes = {
        "attention.qkv": (config.dim, 3 * config.dim),
        "attention.out": (config.dim, config.dim),
        "feed_forward.w1": (config.dim, config.ffn_dim),
        "feed_forward.w2": (config.ffn_dim, config.dim),
        "feed_forward.w3": (config.dim, config.ffn_dim),
    }
    blocks = [f"context_refiner.{i}" for i in range(config.n_refiner_layers)]
    blocks += [f"noise_refiner.{i}" for i in range(config.n_refiner_layers)]
    blocks += [f"layers.{i}" for i in range(config.n_layers)]
    return tuple(LayerSpec(f"{block}.{name}", None, *shapes[name]) for block in blocks for name in shapes)


def predictor_config(
    backbone: BackboneConfig, token_dim: int, hidden: int, blocks: int, rank: int
) -> QueryConfig:
    return QueryConfig(
        hidden=hidden, blocks=blocks, heads=4, code=32, rank=rank, token_dim=token_dim, layers=adapted_layers(backbone)
    )  # fmt: skip


def as_pairs(layers: Mapping) -> dict[str, LayerPair]:
    """Prediction.layers() -> what the training backbone takes."""
    return {target.weight: pair for target, pair in layers.items()}


class World:
    """Pool, latents and encoder tokens of all its pictures, computed once: encoder and latents are frozen."""

    def __init__(self, pool: Pool, basis: PatchBasis, encoder: VisionEncoder) -> None:
        self.pool = pool
        self.latents = latents_of(pool, basis)  # (styles, per_style, C, h, w) float16
        self.tokens = encode_pool(pool, encoder)  # (styles, per_style, T, D) float16
        self.gray = encoder(torch.full((1, 3, 128, 128), GRAY) * 2 - 1).detach()[0]  # (T, D)


@torch.no_grad()
def encode_pool(pool: Pool, encoder: VisionEncoder, block: int = 32) -> Tensor:
    out = []
    for start in range(0, len(pool.styles), block):
        pictures = torch.from_numpy(pool.pictures[start : start + block].copy()).flatten(0, 1)
        out.append(encoder(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).half())  # BHWC -> BCHW
    return torch.cat(out).unflatten(0, (len(pool.styles), -1))


@dataclass(frozen=True)
class Batch:
    """Rows are grouped by style: the targets of style s are rows s * M .. (s + 1) * M - 1."""

    tokens: Tensor  # (S, N * T, D)
    x: Tensor  # (S * M, C, h, w) noisy latents
    sigma: Tensor  # (S * M,)
    ids: Tensor  # (S * M, TOKENS)
    target: Tensor  # (S * M, C, h, w) velocity


def draw_batch(
    world: World, styles: int, pairing: Pairing, rng: np.random.Generator, generator: torch.Generator
) -> Batch:
    """References of one style against targets of the same style and other contents."""
    pool, per_style = world.pool, world.latents.shape[1]
    n = int(rng.integers(1, pairing.most_references + 1))
    tokens, clean, prompts = [], [], []
    for s in rng.integers(len(pool.styles), size=styles):
        order = rng.permutation(per_style)
        others = order[:n] if pairing.same_content else order[n:]
        choice = [(s, r) for r in np.resize(others, pairing.targets)]
        references = world.tokens[s, order[:n]].flatten(0, 1)
        if rng.uniform() < pairing.gray:
            references = world.gray.repeat(n, 1).half()
            choice = [(int(rng.integers(len(pool.styles))), int(rng.integers(per_style))) for _ in choice]
        tokens.append(references)
        for s_, r in choice:
            clean.append(world.latents[s_, r])
            prompts.append(
                "" if rng.uniform() < pairing.empty_prompts else content_prompt(pool.contents[s_][r])
            )
    x = torch.stack(clean).float()
    noise = torch.randn(x.shape, generator=generator)
    sigma = draw_sigmas(len(x), generator)
    return Batch(
        torch.stack(tokens).float(), noisy(x, noise, sigma), sigma, token_ids(prompts), velocity(x, noise)
    )


def train(
    folder: Path,
    plan: Plan,
    pairing: Pairing,
    backbone: Backbone,
    text: TextEncoder,
    encoder: VisionEncoder,
    config: QueryConfig,
    basis: PatchBasis,
    compiled: bool,
    start: QueryPredictor | None = None,
) -> tuple[Run, QueryPredictor]:
    """`plan.batch` counts styles. `start`: a trained predictor to go on from, for a new run.

    Only the predictor learns; the log shows the loss ratio on held-out styles.
    """
    for frozen in (backbone, text, encoder):
        frozen.requires_grad_(False).eval()
    torch.manual_seed(plan.seed)
    predictor = QueryPredictor(config)
    if start is not None:
        predictor.load_state_dict(start.float().state_dict())
    world, unseen = World(train_pool(), basis, encoder), World(test_pool(), basis, encoder)
    run = Run(folder, plan, {"predictor": predictor}, lambda k, p: p.ndim == 2 and ".blocks." in k)

    def flow_loss(
        x: Tensor, sigma: Tensor, context: Tensor, target: Tensor, lora: dict[str, LayerPair]
    ) -> Tensor:
        return (backbone(x, sigma, context, lora) - target).square().mean()

    step_loss = torch.compile(flow_loss) if compiled else flow_loss

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        batch = draw_batch(world, plan.batch, pairing, rng, generator)
        lora = as_pairs(predictor(batch.tokens).layers())
        return step_loss(batch.x, batch.sigma, text(batch.ids), batch.target, lora)

    @torch.no_grad()
    def measure(step: int) -> dict:
        with_lora, without = 0.0, 0.0
        fixed = Pairing(pairing.targets, pairing.most_references, 0.0, 0.0)
        for index in range(6):
            batch = draw_batch(
                unseen, plan.batch, fixed, np.random.default_rng(index), torch.Generator().manual_seed(index)
            )
            context = text(batch.ids)
            lora = as_pairs(predictor(batch.tokens).layers())
            with_lora += float(step_loss(batch.x, batch.sigma, context, batch.target, lora))
            without += float(flow_loss(batch.x, batch.sigma, context, batch.target, {}))
        return {"unseen_loss": round(with_lora / 6, 5), "unseen_ratio": round(with_lora / without, 4)}

    run.train(loss, [(100, measure)])
    return run, predictor
