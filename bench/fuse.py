"""How long fusing two LoRAs takes at full size, and how much memory: `python -m bench.fuse --json [--rank 64]`.

Two random LoRAs on every Linear of the blocks of FLUX.2 klein 4B, fused by `fuse.svd` to the rank of one of them, on
the CPU. Memory is what PyTorch's allocator counts, the two LoRAs and the result included, over the bytes of the two.
`largest_tensor` is the most elements that a tensor had during the fusion; the dense change of the largest layer would
have `dense_elements`. `cpu_seconds` are those of all threads: what else the machine does hardly touches them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch.overrides import TorchFunctionMode

from bench._measure import machine, peak_bytes, timed
from bench._models import klein_4b_layers
from i2l_core.lora import LoRA, LowRank, Target
from i2l_core.mixing import fuse

_RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--rank", type=int, default=64, help="of each of the two, and of the result")
    options = parser.parse_args()
    print(json.dumps(measure(options.rank)))


@torch.inference_mode()
def measure(rank: int) -> dict:
    loras = [random_lora(rank, seed) for seed in (1, 2)]
    size = sum(
        4 * (layer.up.numel() + layer.down.numel()) for lora in loras for layer in lora.layers.values()
    )

    def run() -> None:
        fuse.svd(loras, [1.0, 1.0], rank=rank)

    run()
    busy = time.process_time()
    seconds = [timed(run) for _ in range(_RUNS)]
    busy = (time.process_time() - busy) / _RUNS
    with _Largest() as seen:
        run()
    return {
        "device": machine(torch.device("cpu")),
        "layers": loras[0].n_layers,
        "rank": rank,
        "loras_mb": round(size / 1e6),
        "seconds": round(statistics.median(seconds), 2),
        "seconds_best": round(min(seconds), 2),
        "cpu_seconds": round(busy, 2),
        "peak_over_loras": round(1 + peak_bytes(run, torch.device("cpu")) / size, 2),
        "largest_tensor": seen.elements,
        "dense_elements": max(layer.d_in * layer.d_out for layer in loras[0].layers.values()),
        "runs": _RUNS,
    }


def random_lora(rank: int, seed: int) -> LoRA:
    """A LoRA on all of `klein_4b_layers` whose directions fall off as 1, 1/2, 1/3, ..."""
    gen = torch.Generator().manual_seed(seed)
    fall = 1 / torch.arange(1, rank + 1)
    return LoRA(
        {
            Target(spec.weight, spec.rows): LowRank(
                torch.randn(rank, spec.d_in, generator=gen) / spec.d_in**0.5,
                torch.randn(spec.d_out, rank, generator=gen) * fall,
            )
            for spec in klein_4b_layers()
        },
        base_model="flux2-klein-4b",
    )


class _Largest(TorchFunctionMode):
    """Remembers the most elements that any result of an operation had."""

    elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


if __name__ == "__main__":
    main()
