"""A LoRA trained for one style against the predicted one: style, prompt, and time.

Each style trains a LoRA of the predicted one's rank and layers on the pictures that the predictor looks at, in a
batch with the others but without a say in them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from i2l_core.demo.backbone import LayerPair
from i2l_core.demo.prompts import content_prompt
from i2l_core.demo.sampler import Sampling
from i2l_core.train.demo_stages.data import token_ids
from i2l_core.train.flow import draw_sigmas, noisy, velocity

from .._world import Bench, predict

MARKS = (100, 500, 2000)  # steps after which the LoRAs are looked at
_PICTURES = 1  # of each style in a step, as trainers of LoRAs have it
_RATE = 2e-3
_WARMUP = 20


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Style distance, prompt accuracy and time of all; gain and time of each predicted LoRA against each trained one.

    Gain: how far the style distance is below that of no LoRA. Times are per style, of all styles in a batch.
    """
    sampling = Sampling(steps)
    none = bench.paint("none", sampling, None, None)
    references = {
        f"predicted, {n} reference{'s' * (n > 1)}": bench.references[:, :n] for n in _references(bench)
    }
    times: dict[str, list[float]] = {name: [] for name in references}
    cases = {}
    for name, seen in references.items():
        lora = predict(seen)
        cases[name] = bench.paint(name, sampling, lora, lora)
    for mark, spent, learned in _trained(bench, lora):
        for name, seen in references.items():
            times[name].append(seconds_of_predicting(bench, seen))
        name = f"trained {mark} steps"
        times[name] = [spent]
        cases[name] = bench.paint(name, sampling, learned, learned)
    seconds = {name: statistics.median(each) / bench.styles for name, each in times.items()}
    gain = {name: float((none.style_distance - case.style_distance).mean()) for name, case in cases.items()}
    return {
        "none": none.figures(),
        "cases": {
            name: {**case.figures(), "seconds_per_style": round(seconds[name], 5)}
            for name, case in cases.items()
        },
        "predicted_over_trained": {
            trained: {
                name: {
                    "gain": round(gain[name] / gain[trained], 3),
                    "times_faster": round(seconds[trained] / seconds[name]),
                }
                for name in references
            }
            for trained in cases
            if trained not in references
        },
    }


def _references(bench: Bench) -> tuple[int, ...]:
    """One, and all that the trained LoRAs see."""
    return tuple(sorted({1, bench.n_references}))


def seconds_of_predicting(bench: Bench, references: Tensor) -> float:
    started = clock(bench)
    predict(references)
    return clock(bench) - started


def _trained(bench: Bench, like: dict[str, LayerPair]) -> Iterator[tuple[int, float, dict[str, LayerPair]]]:
    """(steps, seconds of training so far, LoRAs) at each mark; the rate falls towards the last."""
    latents = bench.encoder(bench.references.flatten(0, 1)).unflatten(0, bench.references.shape[:2])
    prompts = [content_prompt(c) for row in bench.pool.contents for c in row[: bench.n_references]]
    words = bench.text(token_ids(prompts).to(bench.device)).unflatten(0, latents.shape[:2])
    lora = fresh(like)
    optimiser = torch.optim.AdamW([t for pair in lora.values() for t in pair], lr=_RATE, weight_decay=0.0)

    def learn(step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randperm(bench.n_references, generator=generator)[:_PICTURES]
        optimiser.zero_grad()
        with torch.enable_grad():
            flow(
                bench, latents[:, rows].flatten(0, 1), words[:, rows].flatten(0, 1), lora, generator
            ).backward()

    learn(0)  # compiles
    spent, started = 0.0, clock(bench)
    for step in range(max(MARKS)):
        # each mark ends a training of its own: the rate falls to a tenth before it
        first = max((m for m in MARKS if m <= step), default=0)
        last = min(m for m in MARKS if m > step)
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / _WARMUP) * (1 - 0.9 * (step - first) / (last - first))
        learn(step)
        optimiser.step()
        if step + 1 in MARKS:
            spent += clock(bench) - started
            yield step + 1, spent, {k: (down.detach(), up.detach()) for k, (down, up) in lora.items()}
            started = clock(bench)


def flow(
    bench: Bench, clean: Tensor, words: Tensor, lora: dict[str, LayerPair], generator: torch.Generator
) -> Tensor:
    """The sum over styles of each one's own loss, so that a style trains as if it were alone."""
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    sigma = draw_sigmas(len(clean), generator).to(clean)
    v = bench.network(noisy(clean, noise, sigma), sigma, words, lora)
    return (v - velocity(clean, noise)).square().mean() * bench.styles


def fresh(like: dict[str, LayerPair]) -> dict[str, LayerPair]:
    """LoRAs of the same shapes that change nothing yet."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: (
            (torch.randn(down.shape, generator=generator) / down.shape[-1] ** 0.5).to(down).requires_grad_(),
            torch.zeros_like(up).requires_grad_(),
        )
        for name, (down, up) in like.items()
    }


def clock(bench: Bench) -> float:
    """Seconds; on a CPU those that this process computed, so that whatever else runs there does not count."""
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
