"""What a cache of keys and values costs per forward: `python -m bench.templates --json [--size flux2-small]`.

Seconds of one forward of a FLUX.2 with a cache on its prompt, as the host samples with it, as ratios to the same
forward with as many more keys and values from a bare attention override, which does nothing else. The ways take turns,
forward by forward. `over_plain` is the ratio to a forward without more keys: what the attention itself costs.
`output_error` says how far the outputs of cache and override are apart, as a share of what the keys change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench._measure import machine, timed
from bench._models import SIZES, Size, build
from i2l_core.kv_caches.cache import KVCache
from tools.host import import_host

_TOKENS = (512, 1024, 4608)


def main() -> None:
    sizes = {name: size for name, size in SIZES.items() if size.kind == "Flux2"}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--size", choices=sorted(sizes), default="flux2-small")
    parser.add_argument("--tokens", type=int, nargs="*", default=_TOKENS, help="of each cache")
    parser.add_argument("--rounds", type=int, default=9, help="forwards of each way")
    parser.add_argument("--cuda", action="store_true", help="on the GPU, in bf16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        import_host(Path(folder), cpu=not options.cuda)
        print(json.dumps(measure(options, sizes[options.size])))


def measure(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    device = torch.device("cuda" if options.cuda else "cpu")
    dtype = torch.bfloat16 if options.cuda else torch.float32
    model = build(size, dtype)
    words = [[torch.randn(1, size.words, size.text_dim, generator=torch.Generator().manual_seed(3)), {}]]
    found = {
        f"{n}_tokens": _compare(model, words, size, _cache(size, n, dtype), options) for n in options.tokens
    }
    return {
        "device": machine(device),
        "size": options.size,
        "own_tokens": size.words + size.latent[1] * size.latent[2],
        "rounds": options.rounds,
        "bytes_per_token": _cache(size, 1, dtype).nbytes,
        **found,
    }


def _compare(
    model: Any, words: list[Any], size: Size, cache: KVCache, options: argparse.Namespace
) -> dict[str, float]:
    from i2l_core.host.kv_caches.apply import apply_cache

    bare = model.clone()
    device = model.load_device
    bare.model_options["transformer_options"]["optimized_attention_override"] = _Bare(cache, device)
    ways = {"plain": (model, words), "bare": (bare, words), "cache": (model, apply_cache(words, cache))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outputs: dict[str, Tensor] = {}
    for turn in range(options.rounds + 1):
        for name, (network, conds) in ways.items():
            took, outputs[name] = _forward(network, conds, size)
            if turn:  # the first turn warms up
                seconds[name].append(took)
    ratio = _ratio(seconds)
    changed = (outputs["bare"] - outputs["plain"]).double().norm()
    return {
        "over_bare": round(ratio("cache", "bare"), 3),
        "over_plain": round(ratio("cache", "plain"), 3),
        "cache_ms": round(1000 * statistics.median(seconds["cache"]), 1),
        "bare_ms": round(1000 * statistics.median(seconds["bare"]), 1),
        "plain_ms": round(1000 * statistics.median(seconds["plain"]), 1),
        "output_error": float((outputs["cache"] - outputs["bare"]).double().norm() / changed),
    }


def _ratio(seconds: dict[str, list[float]]) -> Callable[[str, str], float]:
    """Of two ways, round by round: what else the machine does lasts longer than a round."""
    return lambda one, other: statistics.median(
        a / b for a, b in zip(seconds[one], seconds[other], strict=True)
    )


def _forward(model: Any, conds: list[Any], size: Size) -> tuple[float, Tensor]:
    """(seconds of the network in the last of two steps, the picture) of a sampling at cfg 1."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds, conds)
    guider.set_cfg(1.0)
    noise = torch.randn(1, *size.latent, generator=torch.Generator().manual_seed(4))
    times: list[float] = []
    network = model.model.diffusion_model
    run = network.forward

    def timed_run(*args: Any, **kwargs: Any) -> Tensor:
        out: list[Tensor] = []

        def once() -> None:
            out.append(run(*args, **kwargs))
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        times.append(timed(once))
        return out[0]

    network.forward = timed_run
    try:
        with torch.inference_mode():
            picture = guider.sample(
                noise,
                torch.zeros_like(noise),
                comfy.samplers.sampler_object("euler"),
                torch.tensor([1.0, 0.5, 0.0]),
                disable_pbar=True,
                seed=1,
            )
    finally:
        del network.forward
    return times[-1], picture


class _Bare:
    """More keys and values for every attention, ready on the device."""

    def __init__(self, cache: KVCache, device: torch.device) -> None:
        self._blocks = {
            name: tuple(part.to(device).transpose(1, 2).contiguous() for part in pair)
            for name, pair in cache.blocks.items()
        }

    def __call__(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
        place = options["transformer_options"]
        keys, values = self._blocks[f"{place['block_type']}_{place['block_index']}"]
        return attention(q, torch.cat([k, keys], 2), torch.cat([v, values], 2), heads, **options)


def _cache(size: Size, tokens: int, dtype: torch.dtype) -> KVCache:
    """Random, in every block."""
    gen = torch.Generator().manual_seed(5)
    shape = (1, tokens, size.config["num_heads"], 128)
    names = [f"double_{i}" for i in range(size.config["depth"])]
    names += [f"single_{i}" for i in range(size.config["depth_single_blocks"])]
    return KVCache(
        {
            name: (torch.randn(shape, generator=gen).to(dtype), torch.randn(shape, generator=gen).to(dtype))
            for name in names
        }
    )


if __name__ == "__main__":
    main()
