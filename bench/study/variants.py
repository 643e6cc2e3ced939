"""Trained equally long, from scratch, on the same data: the predictor, one on pairs of equal content, and an adapter.

    python -m bench.study.variants [different_content] [same_content] [adapter] [control] [--steps N]

With equal content the target shows what a reference shows, which the paper's section 3.3 warns of. The adapter has
the predictor's transformer and looks at the same tokens, but writes further context tokens for the frozen backbone
instead of a LoRA (IP-Adapter, FLUX Redux). All are trained as `tiny-world.toml` says, into `.runs/`. The control
(control.py) has a plan of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from i2l_core.demo.files import PREDICTOR, WEIGHTS
from i2l_core.demo.text import WIDTH
from i2l_core.predictors.query.config import QueryConfig
from i2l_core.predictors.query.file import load_predictor
from i2l_core.predictors.query.network import QueryNetwork, TransformerBlock
from i2l_core.train.config import TrainConfig, load_config
from i2l_core.train.data.batches import BatchSplit, MicroBatches, to_device
from i2l_core.train.data.data_set import split_styles
from i2l_core.train.demo_base import DemoBase, DemoBaseLoader
from i2l_core.train.demo_stages.run import StageRun
from i2l_core.train.encoder import load_encoder
from i2l_core.train.objective import reference_tokens
from i2l_core.train.session import open_data, open_encoded, train

from . import control

CONFIG = Path("i2l_core/train/configs/tiny-world.toml")
ADAPTER = Path(".runs/adapter")
PAIRS = {  # of reference and target: share of equal content, and where what was trained on them lies
    "different_content": (0.0, Path(".runs/different-content")),
    "same_content": (1.0, Path(".runs/same-content")),
}
_TOKENS = 16  # that the adapter adds: as many as a prompt has
_BLOCK = 64  # pictures encoded at once


class Adapter(nn.Module):
    """Tokens of references (B, T, D) -> context tokens (B, 16, WIDTH), by the predictor's own transformer."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.1 * torch.randn(_TOKENS, config.hidden))
        self.token_norm = nn.LayerNorm(config.token_dim)
        self.token_in = nn.Linear(config.token_dim, config.hidden)
        self.blocks = nn.ModuleList(TransformerBlock(config, nn, {}) for _ in range(config.blocks))
        self.out = nn.Sequential(nn.LayerNorm(config.hidden), nn.Linear(config.hidden, WIDTH))

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias`: as `QueryNetwork.forward` takes it."""
        image = self.token_in(self.token_norm(tokens))
        x = torch.cat([self.queries.expand(len(image), -1, -1), image], 1)
        mask = None if bias is None else F.pad(bias, (_TOKENS, 0))[:, None, None, :]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, keep=_TOKENS if i + 1 == len(self.blocks) else None)
        return self.out(x)


@torch.no_grad()
def tokens_of(references: Tensor) -> Tensor:
    """References (S, N, 3, H, W) in 0..1 -> what predictors look at, (S, N * T, D)."""
    encoder = load_predictor(WEIGHTS / PREDICTOR).encoder.float().to(references.device)
    parts = [encoder(part * 2 - 1) for part in references.flatten(0, 1).split(_BLOCK)]
    return torch.cat(parts).unflatten(0, references.shape[:2]).flatten(1, 2)


def load_adapter(device: torch.device) -> Adapter | None:
    """The trained adapter, or None when it has not been trained."""
    if not ADAPTER.exists():
        return None
    adapter = Adapter(_shipped())
    _run(load_config(CONFIG), adapter).load_average()
    return adapter.eval().requires_grad_(False).to(device)


def load_pairs(name: str, device: torch.device) -> QueryNetwork | None:
    """The predictor that was trained on one kind of `PAIRS`, or None when it has not been trained."""
    path = PAIRS[name][1] / PREDICTOR
    return load_predictor(path).predictor.float().to(device) if path.exists() else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", choices=[*PAIRS, "adapter", "control"])
    parser.add_argument("--steps", type=int, help="otherwise as the config says")
    options = parser.parse_args(arguments)
    config = load_config(CONFIG)
    if options.steps:
        config = replace(config, plan=replace(config.plan, steps=options.steps))
    for name, (share, folder) in PAIRS.items():
        if not options.variants or name in options.variants:
            pairing = replace(config.pairing, same_content=share)
            table = replace(config.run, folder=str(folder))
            train(replace(config, pairing=pairing, run=table), DemoBaseLoader(), Accelerator())
    if not options.variants or "adapter" in options.variants:
        train_adapter(config)
    if not options.variants or "control" in options.variants:
        control.train(options.steps)


def train_adapter(config: TrainConfig) -> None:
    """The loss, the data and the order of the data are those of the predictor."""
    torch.set_flush_denormal(True)
    torch.manual_seed(config.plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = open_data(config.data)
    styles, _, _ = split_styles(data, config.data.unseen, config.data.small_styles)
    world = DemoBase(WEIGHTS, device, compiled=config.base.compile)
    encoder = load_encoder(config.encoder).to(device)
    adapter = Adapter(_shipped()).to(device)
    run = _run(config, adapter)
    deal = BatchSplit(config.plan.batch, config.plan.batch, 0, 1)
    feed = MicroBatches(styles, open_encoded(config, data), config.pairing, deal, config.plan.seed)
    batches = feed.from_step(run.step, config.plan.steps, config.data.workers)

    def loss(step: int) -> Tensor:
        batch = to_device(next(batches), world, world, device)
        more = adapter(*reference_tokens(encoder, batch.references, _BLOCK))
        more = more.repeat_interleave(config.pairing.targets, 0)
        texts = [
            {"context": torch.cat([text["context"], tokens])}
            for text, tokens in zip(batch.texts, more, strict=True)
        ]
        return (world.velocity(batch.x, batch.sigma, texts, None) - batch.target).square().mean()

    run.train(loss)


def _run(config: TrainConfig, adapter: Adapter) -> StageRun:
    return StageRun(
        ADAPTER, config.plan, {"adapter": adapter}, lambda name, p: p.ndim == 2 and ".blocks." in name
    )


def _shipped() -> QueryConfig:
    return load_predictor(WEIGHTS / PREDICTOR).predictor.config


if __name__ == "__main__":
    main()
