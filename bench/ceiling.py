"""What a LoRA trained for one style reaches, beside the predicted one: `python -m bench.ceiling --json`.

On held-out styles and contents: flow loss (paper, eq. 6) with a LoRA over the loss without, on pictures that neither
LoRA has seen. The trained LoRA has the rank and layers of the predicted one and learns from fourteen pictures of its
style; the predictor looks at four of them once. All styles train in one batch, each with its own LoRA.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench._world import predict
from i2l_core.demo import files
from i2l_core.demo.backbone import Backbone, LayerPair
from i2l_core.demo.content import Content
from i2l_core.demo.pool import PoolConfig, open_pool
from i2l_core.demo.prompts import content_prompt
from i2l_core.train.demo_stages.data import token_ids
from i2l_core.train.flow import draw_sigmas, noisy, velocity

_REFERENCES, _LEARN, _TEST, _SEED = 4, 14, 4, 5
_DRAWS = 6  # noise levels and noises for each picture when a loss is measured
_RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--styles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300, help="of training, with four pictures a step")
    options = parser.parse_args()
    print(json.dumps(run(options.styles, options.steps, not options.json)))


def run(styles: int, steps: int, talk: bool) -> dict[str, Any]:
    pool = open_pool(Path(".runs/pool"), PoolConfig(styles, _LEARN + _TEST, _SEED, held_out=True))
    backbone, text = files.load_backbone()
    backbone.requires_grad_(False)
    encoder, _ = files.load_vae()
    pictures = torch.from_numpy(pool.pictures.copy()).permute(0, 1, 4, 2, 3).float() / 255  # (S, P, 3, H, W)
    with torch.no_grad():
        latents = encoder(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        words = torch.stack([text(token_ids(_prompts(row))) for row in pool.contents])
    learn, test = (slice(0, _LEARN), slice(_LEARN, None))

    started = time.perf_counter()
    with torch.no_grad():
        predicted = predict(pictures[:, :_REFERENCES])
    predicting = (time.perf_counter() - started) / styles

    trained = _fresh(predicted)
    optimiser = torch.optim.AdamW([t for pair in trained.values() for t in pair], lr=_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, steps)
    ratios: dict[str, float] = {}

    def measure(name: str, lora: dict[str, LayerPair]) -> None:
        with torch.no_grad():
            with_lora = _loss(backbone, latents[:, test], words[:, test], lora)
            ratios[name] = round(with_lora / without, 4)
        if talk:
            sys.stderr.write(f"{name}: {ratios[name]}\n")

    with torch.no_grad():
        without = _loss(backbone, latents[:, test], words[:, test], {})
    measure("predicted", predicted)
    started = time.perf_counter()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randperm(_LEARN, generator=generator)[:4]
        x, context = latents[:, learn][:, rows], words[:, learn][:, rows]
        loss = _flow(backbone, x, context, trained, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        if step + 1 in (steps // 4, steps // 2):
            measure(f"trained {step + 1} steps", trained)
    training = (time.perf_counter() - started) / styles
    measure(f"trained {steps} steps", trained)
    return {
        "styles": styles,
        "loss_ratio": ratios,
        "seconds_per_style": {"predicting": round(predicting, 3), "training": round(training, 1)},
        "training_over_predicting": round(training / predicting),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _prompts(contents: tuple[Content, ...]) -> list[str]:
    return [content_prompt(content) for content in contents]


def _fresh(like: dict[str, LayerPair]) -> dict[str, LayerPair]:
    """LoRAs of the same shapes that change nothing yet."""
    generator = torch.Generator().manual_seed(_SEED)
    return {
        name: (
            (torch.randn(down.shape, generator=generator) / down.shape[-1] ** 0.5).requires_grad_(),
            torch.zeros(up.shape, requires_grad=True),
        )
        for name, (down, up) in like.items()
    }


def _flow(
    backbone: Backbone, x: Tensor, words: Tensor, lora: dict[str, LayerPair], generator: torch.Generator
) -> Tensor:
    """Flow loss of latents (S, P, C, h, w) with one LoRA for each of the S styles."""
    clean, context = x.flatten(0, 1), words.flatten(0, 1)
    noise = torch.randn(clean.shape, generator=generator)
    sigma = draw_sigmas(len(clean), generator)
    v = backbone(noisy(clean, noise, sigma), sigma, context, lora)
    return (v - velocity(clean, noise)).square().mean()


def _loss(backbone: Backbone, x: Tensor, words: Tensor, lora: dict[str, LayerPair]) -> float:
    """The same over several draws, always the same ones."""
    draws = (_flow(backbone, x, words, lora, torch.Generator().manual_seed(1000 + k)) for k in range(_DRAWS))
    return sum(float(loss) for loss in draws) / _DRAWS


if __name__ == "__main__":
    main()
