"""Which of the host's architectures makes the cheaper miniature on this machine: `python -m bench.backbones --json`.

One forward of a batch of two (cond and uncond) at 64 image tokens, as the host feeds each model: FLUX.2 gets its
text padded to 512 tokens, the Z-Image class gets the 16 of the tiny world. Random weights, interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench._models import SIZES
from i2l_core.demo.backbone import BackboneConfig
from tools.host import import_host

_RUNS = 15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="accepted for uniformity: the output is JSON in any case"
    )
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        import_host(Path(folder))
        print(json.dumps(_measure()))


@torch.inference_mode()
def _measure() -> dict[str, Any]:
    import comfy.ldm.flux.model
    import comfy.ldm.lumina.model
    import comfy.ops

    config = BackboneConfig()
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "device": "cpu",
        "operations": comfy.ops.disable_weight_init,
    }
    flux = comfy.ldm.flux.model.Flux(**SIZES["flux2-tiny"].config, **options)
    lumina = comfy.ldm.lumina.model.NextDiT(**config.host_config(), **options)
    for p in (*flux.parameters(), *lumina.parameters()):
        torch.nn.init.normal_(p, std=0.02)
    sigma = torch.full((2,), 0.5)
    calls = {
        "flux2": lambda: flux(
            torch.randn(2, 128, 8, 8), sigma, torch.randn(2, 512, 128), transformer_options={}
        ),
        "lumina2": lambda: lumina(
            torch.randn(2, 16, 16, 16),
            sigma,
            torch.randn(2, 16, config.cap_feat_dim),
            16,
            transformer_options={},
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(_RUNS + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if run >= 2:  # warm-up
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "milliseconds": {name: round(1000 * value, 1) for name, value in median.items()},
        "parameters_million": {
            "flux2": round(sum(p.numel() for p in flux.parameters()) / 1e6, 1),
            "lumina2": round(sum(p.numel() for p in lumina.parameters()) / 1e6, 1),
        },
        "flux2_over_lumina2": round(median["flux2"] / median["lumina2"], 2),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
