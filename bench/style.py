"""Does a predicted LoRA carry the style, and only the style? Measured on held-out styles.

    python -m bench.style --json [--styles 128] [--sheet PATH]

For every held-out style: four reference pictures, and pictures sampled from prompts for other, held-out contents
with no LoRA, with the predicted one, and with the one predicted for another style. Asymmetric
guidance: `python -m bench.study guidance`. How the figures are measured, and why one can trust them: docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from i2l_core.demo.sampler import Sampling

from ._world import Bench, Case, LoRAs, predict, rolled, save_sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--styles", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="also save the pictures of the first styles, to look at")
    options = parser.parse_args()
    with torch.inference_mode():
        bench = Bench(options.styles, not options.json)
        cases, result = predicted(bench, Sampling(options.steps, options.cfg))
    if options.sheet is not None:
        save_sheet(options.sheet, bench.references, cases)
    print(json.dumps(result))


def predicted(bench: Bench, sampling: Sampling) -> tuple[list[Case], dict[str, Any]]:
    loras = predict(bench.references)
    made: dict[str, LoRAs | None] = {
        "none": None,
        "predicted": loras,
        "wrong": rolled(loras),
    }
    cases = {name: bench.paint(name, sampling, lora, lora) for name, lora in made.items()}
    real = bench.judge(bench.real)
    other = bench.judge(bench.real.unflatten(0, (bench.styles, -1)).roll(1, 0).flatten(0, 1))
    result = {
        **{name: case.figures() for name, case in (*cases.items(), ("real", real))},
        "ranking": round(float((real.style_distance < other.style_distance).float().mean()), 4),
        "other_style_distance": other.figures()["style_distance"],
        "predicted_below_none": round(1 - _ratio(cases["predicted"], cases["none"]), 4),
        "predicted_below_wrong": round(1 - _ratio(cases["predicted"], cases["wrong"]), 4),
        "sampling": {"steps": sampling.steps, "cfg": sampling.cfg},
    }
    return list(cases.values()), {**result, **bench.about()}


def _ratio(a: Case, b: Case) -> float:
    return float(a.style_distance.mean() / b.style_distance.mean())


if __name__ == "__main__":
    main()
