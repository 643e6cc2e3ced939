"""What asymmetric guidance costs per step: `python -m bench.guidance --json [--size flux2-tiny] [--rank 16]`.

Seconds per step of a whole sampling in the real host, as ratios to plain CFG with one merged LoRA, beside every
other correct way to give the two sides of CFG a LoRA each. The ways take turns, sampling by sampling; the first
step of each sampling is left out. Memory is what tensors hold in the middle of a sampling, each way alone, beyond
what the model without any LoRA holds. (Merged LoRAs hold some too: the host keeps the weights as they were.)
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench._models import SIZES, Size, build, random_lora
from tools.host import import_host

_STEPS = 6  # of one sampling
_CFG = 4.0

Way = Callable[[Any], Callable[[], Any]]  # MODEL -> a function that makes a fresh guider


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--size", choices=sorted(SIZES), default="flux2-tiny")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8, help="samplings of each way")
    parser.add_argument("--ways", nargs="*", help="only these (plain_cfg is always measured)")
    parser.add_argument("--cuda", action="store_true", help="on the GPU, in bf16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        import_host(Path(folder), cpu=not options.cuda)
        print(json.dumps(measure(options)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    size = SIZES[options.size]
    dtype = torch.bfloat16 if options.cuda else torch.float32
    ways = _ways(size, dtype, options.rank)
    if options.ways:
        ways = {name: way for name, way in ways.items() if name in ("plain_cfg", *options.ways)}
    seconds = _time(ways, size, dtype, options)
    gc.collect()
    memory = {name: _memory(way, size, dtype) for name, way in (("none", _no_lora(size)), *ways.items())}
    plain = seconds["plain_cfg"]
    # round by round: what else the machine does lasts longer than a round
    ratios = {
        name: statistics.median(a / b for a, b in zip(rounds, plain, strict=True))
        for name, rounds in seconds.items()
    }
    extra = {name: round((held - memory["none"]) / 2**20, 2) for name, held in memory.items()}
    regions = {}
    for name in ("live_two_regions", "style_regions"):
        if name in seconds and "live_two" in seconds:
            pairs = zip(seconds[name], seconds["live_two"], strict=True)
            regions[f"{name}_over_live_two"] = round(statistics.median(a / b for a, b in pairs), 3)
    return {
        "device": torch.cuda.get_device_name()
        if options.cuda
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "size": options.size,
        "rank": options.rank,
        **{name: round(ratio, 3) for name, ratio in ratios.items()},
        **regions,
        "extra_memory_mb": extra.get("asymmetric"),
        "extra_memory_of_all_mb": extra,
        "plain_cfg_ms": round(1000 * statistics.median(plain), 2),
        "steps": (_STEPS - 1) * len(plain),
    }


def _time(
    ways: dict[str, Way], size: Size, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Per way the median seconds of a step, one for each round."""
    model = build(size, dtype)
    guiders = {name: way(model) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, guider in guiders.items():
            times, _ = _sample(guider(), size)
            if turn:  # the first sampling warms up
                seconds[name].append(statistics.median(times))
        if not options.json:
            sys.stderr.write(f"round {turn} of {options.rounds}\n")
    return seconds


def _memory(way: Way, size: Size, dtype: torch.dtype) -> int:
    """Bytes held in the middle of a sampling, with nothing else alive."""
    guider = way(build(size, dtype))()
    _, held = _sample(guider, size, measure_memory=True)
    del guider
    gc.collect()
    return held


def _no_lora(size: Size) -> Way:
    import comfy.samplers

    words = _words(size)
    return lambda model: lambda: _guided(comfy.samplers.CFGGuider, (model,), words)


def _ways(size: Size, dtype: torch.dtype, rank: int) -> dict[str, Way]:
    """All with the same two LoRAs and prompts; plain CFG and live_plain with the style on both sides."""
    import comfy.hooks
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    from i2l_core.host.guidance import asymmetric
    from i2l_core.host.live.engine import attach
    from i2l_core.host.live.loras import LiveLoRA
    from i2l_core.host.lora_model import PredictedLoRA
    from i2l_core.host.patch import apply_merged
    from i2l_core.host.regions import add_region

    words, plain = _words(size), comfy.samplers.CFGGuider
    blueprint = build(size, dtype)
    style, neutral = random_lora(blueprint, rank, 1), random_lora(blueprint, rank, 2)
    del blueprint
    left = torch.zeros(1, *size.latent[-2:])
    left[..., : size.latent[-1] // 2] = 1

    def one(change: Callable[[Any], Any]) -> Way:
        def way(model: Any) -> Callable[[], Any]:
            styled = change(model)
            return lambda: _guided(plain, (styled,), words)

        return way

    def hooked(mode: Any) -> Way:
        hooks = [
            comfy.hooks.create_hook_lora(dict(PredictedLoRA(lora)), 1.0, 0.0) for lora in (style, neutral)
        ]
        conds = [comfy.hooks.set_hooks_for_conditioning(c, h) for c, h in zip(words, hooks, strict=True)]

        def way(model: Any) -> Callable[[], Any]:
            clone = model.clone()
            clone.set_hook_mode(mode)
            return lambda: _guided(plain, (clone,), conds)

        return way

    def two_copies(model: Any) -> Callable[[], Any]:
        first, second = apply_merged(model, style, 1.0), apply_merged(build(size, dtype), neutral, 1.0)
        return lambda: _guided(Guider_DualModel, (first, second), words)

    def style_regions(model: Any) -> Callable[[], Any]:
        styled, positive = add_region(model, words[0], PredictedLoRA(style), left)
        styled, positive = add_region(styled, positive, PredictedLoRA(neutral), 1 - left)
        return lambda: _guided(plain, (styled,), [positive, words[1]])

    return {
        "plain_cfg": one(lambda model: apply_merged(model, style, 1.0)),
        "asymmetric": one(lambda model: asymmetric(model, PredictedLoRA(style), PredictedLoRA(neutral))),
        "live_plain": one(lambda model: attach(model, LiveLoRA(style))),
        "live_two": one(lambda model: attach(model, LiveLoRA(style), LiveLoRA(neutral))),
        "live_two_regions": one(
            lambda model: attach(model, LiveLoRA(style, mask=left), LiveLoRA(neutral, mask=1 - left))
        ),
        "style_regions": style_regions,
        "hooks_maxspeed": hooked(comfy.hooks.EnumHookMode.MaxSpeed),
        "hooks_minvram": hooked(comfy.hooks.EnumHookMode.MinVram),
        "dual_two_copies": two_copies,
    }


def _words(size: Size) -> list[list[Any]]:
    """A positive and a negative conditioning of equal length."""
    gen = torch.Generator().manual_seed(3)
    return [[[torch.randn(1, size.words, size.text_dim, generator=gen), {}]] for _ in range(2)]


def _guided(kind: Any, patchers: tuple[Any, ...], conds: list[Any]) -> Any:
    guider = kind(*patchers)
    guider.set_conds(*conds)
    guider.set_cfg(_CFG)
    return guider


def _sample(guider: Any, size: Size, measure_memory: bool = False) -> tuple[list[float], int]:
    """(seconds of each step but the first, bytes that tensors hold after the last but one)."""
    import comfy.samplers

    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", _STEPS)
    noise = torch.randn(1, *size.latent, generator=torch.Generator().manual_seed(4))
    moments: list[float] = []
    held = 0

    def after_step(step: int, *_: Any) -> None:
        nonlocal held
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if measure_memory and step == _STEPS - 2:
            held = _held()
        moments.append(time.perf_counter())

    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), euler, sigmas, callback=after_step, disable_pbar=True, seed=1
        )
    return [b - a for a, b in itertools.pairwise(moments)], held


def _held() -> int:
    """Bytes in the storages of all tensors alive, each storage once."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    main()
