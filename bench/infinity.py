"""What a style costs in Infinity, as times of a plain run, on a small transformer with random weights.

    python -m bench.infinity --json [--repeats 3] [--device cuda]

The sizes keep the shares of the 2B at one megapixel: 13 scales, a quarter of the tokens before the last three, linear
layers twice the work of attention. `styled`: blend and structure in all later scales; `blend`: the blend alone;
`structure_end`: the structure, and with it the content path, ends after scale 10 of 13; `own_draws`: both paths draw on
their own; `preview`: by count of operations, what pictures after each scale cost on the 2B at one megapixel. Also bytes
in use, over what the formula says.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from i2l_core.infinity.coder import Coder, CoderConfig
from i2l_core.infinity.config import InfinityConfig
from i2l_core.infinity.paths import Drawing, Sampling, Styling, draw, run_nbytes
from i2l_core.infinity.scales import Scales, scales_of
from i2l_core.infinity.transformer import Infinity

from ._measure import machine, peak_bytes, timed

SIDES = (1, 2, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
LIMITS = {"styled": 1.90, "blend": 1.01, "structure_end": 1.25, "preview": 1.05}
_WIDTH_2B, _DEPTH_2B = 2048, 32
_VAE_2B = CoderConfig(32, 128, (128, 256, 512, 512, 512), (128, 256, 512, 512, 512), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=2)
    options = parser.parse_args()
    device = torch.device(options.device)
    result = measure(options.width, options.depth, options.repeats, device, not options.json)
    result["over_plain"]["preview"] = preview_over_plain()
    print(json.dumps({**result, "limits": LIMITS, "machine": machine(device)}))


def measure(width: int, depth: int, repeats: int, device: torch.device, talk: bool) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = InfinityConfig(width, depth, width // 64, 32, 256, 64, 15, 2, 4 * width)
    model = random_model(config, device)
    scales = Scales(tuple((side, side) for side in SIDES), (32, 32))
    what = Drawing(scales, [torch.randn(1, 16, 256, device=device)])
    part = torch.randn(1, 32, 32, 32, device=device)
    styles = {
        "plain": None,
        "styled": Styling(part, structure=(4, 13)),
        "blend": Styling(part),
        "structure_end": Styling(part, structure=(4, 10)),
        "own_draws": Styling(part, structure=(4, 13), shared=False),
    }

    def run(style: Styling | None) -> None:
        for _ in draw(model, what, Sampling(), style, dtype):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()

    for style in styles.values():
        run(style)
    seconds: dict[str, list[float]] = {name: [] for name in styles}
    for _ in range(repeats):
        for name, style in styles.items():
            seconds[name].append(timed(lambda style=style: run(style)))
        if talk:
            print({name: round(found[-1], 2) for name, found in seconds.items()}, flush=True)
    best = {name: min(found) for name, found in seconds.items()}  # what else the machine does only adds
    over_plain = {name: round(found / best["plain"], 3) for name, found in best.items() if name != "plain"}
    memory = {
        name: round(
            peak_bytes(lambda style=style: run(style), device)
            / run_nbytes(config, what, Sampling(), style, dtype.itemsize),
            3,
        )
        for name, style in styles.items()
    }
    return {"over_plain": over_plain, "plain_seconds": round(best["plain"], 3), "bytes_over_formula": memory}


def preview_over_plain() -> float:
    """Operations of a plain run with guidance and a preview after each scale but the last, over those without."""
    scales, coder = scales_of(1.0, "1M"), Coder(_VAE_2B, device="meta")
    seen = attention = 0
    for count in scales.counts:
        seen += count
        attention += count * seen
    plain = 2 * _DEPTH_2B * (2 * 16 * _WIDTH_2B**2 * seen + 4 * _WIDTH_2B * attention)
    latent = torch.empty(1, _VAE_2B.bits, *scales.last, device="meta")
    with FlopCounterMode(display=False) as counted:
        for map_ in scales.maps[:-1]:
            coder.preview(latent, max(map_))
    return round(1 + counted.get_total_flops() / plain, 3)


def random_model(config: InfinityConfig, device: torch.device) -> Infinity:
    model = Infinity(config, device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model


if __name__ == "__main__":
    main()
