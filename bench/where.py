"""What each part of the network does to style and to content: the predicted LoRA limited to it, in the tiny world.

    python -m bench.where --json [--styles 32]

For every preset of LoRA Blocks: style distance and prompt accuracy as bench.style measures them, and the distance
for each style factor, so that "late blocks" or "attention" is a figure and not folklore.
"""

from __future__ import annotations

import argparse
import json

import torch

from i2l_core.demo.judge import Verdict, style_parts
from i2l_core.demo.sampler import Sampling
from i2l_core.errors import I2LError
from i2l_core.lora import LoRA, LowRank, Target
from i2l_core.where import EVERYWHERE, PRESETS, Where, limited

from .style import Bench, Case, LoRAs, predict


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--styles", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with torch.inference_mode():
        bench = Bench(options.styles, not options.json)
        loras = predict(bench.references)
        sampling = Sampling(options.steps, 3.0)
        cases = {"nowhere": bench.paint("nowhere", sampling, None, None)}
        for name, where in PRESETS.items():
            part = limit(loras, where)
            cases[name] = bench.paint(name, sampling, part, part) if part else cases["nowhere"]
        none, whole = cases["nowhere"], cases[EVERYWHERE]
        gain = float((none.style_distance - whole.style_distance).mean())
        result = {
            name: {
                **case.figures(),
                "share_of_gain": round(float((none.style_distance - case.style_distance).mean()) / gain, 3),
                "by_factor": by_factor(bench, case),
            }
            for name, case in cases.items()
        }
    print(json.dumps({**result, **bench.about()}))


def limit(loras: LoRAs, where: Where) -> LoRAs:
    """`where.limited` on stacked LoRAs, empty when nothing is left: the strengths are those of a LoRA of ones."""
    ones = {
        Target(w): LowRank(torch.ones(1, d.shape[2]), torch.ones(u.shape[1], 1))
        for w, (d, u) in loras.items()
    }
    try:
        parts = limited(LoRA(ones), where).layers
    except I2LError:
        return {}
    return {t.weight: (loras[t.weight][0], loras[t.weight][1] * layer.up) for t, layer in parts.items()}


def by_factor(bench: Bench, case: Case) -> dict[str, float]:
    """Mean distance to the references' style, factor by factor."""
    made = style_parts(bench.verdict(case.pictures))
    total: dict[str, float] = {}
    for seen in bench.seen:
        prompts = len(case.pictures) // bench.styles
        fields = Verdict.__dataclass_fields__
        repeated = Verdict(*(getattr(seen, field).repeat_interleave(prompts, 0) for field in fields))
        for name, part in style_parts(repeated).items():
            distance = float((part - made[name]).norm(dim=-1).mean())
            total[name] = total.get(name, 0.0) + distance / len(bench.seen)
    return {name: round(value, 3) for name, value in total.items()}


if __name__ == "__main__":
    main()
