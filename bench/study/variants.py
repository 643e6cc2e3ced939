"""What the predictor is compared with, trained equally long on the same data: an adapter, and pairs of equal content.

    python -m bench.study.variants adapter --steps 2000
    python -m bench.study.variants same_content --steps 2000

The adapter has the predictor's transformer and looks at the same tokens, but writes further context tokens for the
frozen backbone instead of a LoRA (IP-Adapter, FLUX Redux). With equal content the target is one of the references,
which is what the paper's section 3.3 warns of. Weights go to `.runs/`, not into the pack.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from i2l_core.demo import files
from i2l_core.demo.backbone import Backbone
from i2l_core.demo.text import WIDTH, TextEncoder
from i2l_core.encoders import VisionEncoder
from i2l_core.predictors.checkpoint import load_predictor
from i2l_core.predictors.query import Block, QueryConfig, QueryPredictor
from i2l_core.train import predictor as training
from i2l_core.train.__main__ import PRESETS
from i2l_core.train.backbone import pool_basis
from i2l_core.train.data import train_pool
from i2l_core.train.run import Run

RUNS = Path(".runs")
_TOKENS = 16  # that the adapter adds: as many as a prompt has
_BLOCK = 64  # pictures encoded at once


class Adapter(nn.Module):
    """Tokens of references (B, T, D) -> context tokens (B, 16, WIDTH), by the predictor's own transformer."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.1 * torch.randn(_TOKENS, config.hidden))
        self.token_norm = nn.LayerNorm(config.token_dim)
        self.token_in = nn.Linear(config.token_dim, config.hidden)
        self.blocks = nn.ModuleList(Block(config, nn, {}) for _ in range(config.blocks))
        self.out = nn.Sequential(nn.LayerNorm(config.hidden), nn.Linear(config.hidden, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        image = self.token_in(self.token_norm(tokens))
        x = torch.cat([self.queries.expand(len(image), -1, -1), image], 1)
        for i, block in enumerate(self.blocks):
            x = block(x, None, keep=_TOKENS if i + 1 == len(self.blocks) else None)
        return self.out(x)


@torch.no_grad()
def tokens_of(references: Tensor) -> Tensor:
    """References (S, N, 3, H, W) in 0..1 -> what predictors look at, (S, N * T, D)."""
    encoder = load_predictor(files.WEIGHTS / files.PREDICTOR).encoder.float().to(references.device)
    parts = [encoder(part * 2 - 1) for part in references.flatten(0, 1).split(_BLOCK)]
    return torch.cat(parts).unflatten(0, references.shape[:2]).flatten(1, 2)


def load_adapter(device: torch.device) -> Adapter | None:
    """The trained adapter, or None when it has not been trained."""
    if not (RUNS / "adapter").exists():
        return None
    adapter = Adapter(_shipped()[1].config)
    Run(RUNS / "adapter", _plan(None), {"adapter": adapter}, _is_matrix).load_average()
    return adapter.eval().requires_grad_(False).to(device)


def load_same_content(device: torch.device) -> QueryPredictor | None:
    """The predictor of equal content, or None when it has not been trained."""
    if not (RUNS / "same_content").exists():
        return None
    found = QueryPredictor(_shipped()[1].config)
    Run(RUNS / "same_content", _plan(None), {"predictor": found}, _is_matrix).load_average()
    return found.eval().requires_grad_(False).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant", choices=["adapter", "same_content", "predictor"])
    parser.add_argument(
        "--steps", type=int, help="as long as the predictor they are compared with was trained"
    )
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    encoder, shipped = _shipped()
    backbone, text = files.load_backbone()
    plan = _plan(options.steps)
    if options.variant == "adapter":
        _train_adapter(backbone, text, encoder, shipped.config, options.steps)
    else:
        pairing = training.Pairing(same_content=options.variant == "same_content")
        folder = RUNS / ("same_content" if pairing.same_content else "predictor_again")
        training.train(folder, plan, pairing, backbone, text, encoder, shipped.config, pool_basis(), True)
    sys.stderr.write("done\n")


def _train_adapter(
    backbone: Backbone, text: TextEncoder, encoder: VisionEncoder, config: QueryConfig, steps: int | None
) -> None:
    for frozen in (backbone, text, encoder):
        frozen.requires_grad_(False).eval()
    plan, pairing = _plan(steps), training.Pairing()
    torch.manual_seed(plan.seed)
    adapter = Adapter(config)
    world = training.World(train_pool(), pool_basis(), encoder)
    run = Run(RUNS / "adapter", plan, {"adapter": adapter}, _is_matrix)
    step_loss = torch.compile(lambda x, s, c, v: (backbone(x, s, c) - v).square().mean())

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        batch = training.draw_batch(world, plan.batch, pairing, rng, generator)
        more = adapter(batch.tokens).repeat_interleave(pairing.targets, 0)
        return step_loss(batch.x, batch.sigma, torch.cat([text(batch.ids), more], 1), batch.target)

    run.train(loss)


def _shipped() -> tuple[VisionEncoder, QueryPredictor]:
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    return loaded.encoder.float(), loaded.predictor.float()


def _plan(steps: int | None):
    plan = PRESETS["cpu"].plans["predictor"]
    return replace(plan, steps=steps) if steps else plan


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and ".blocks." in name


if __name__ == "__main__":
    main()
