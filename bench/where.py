"""What each part of the network does to style and to content: the predicted LoRA limited to it, in the demo world.

    python -m bench.where --json [--styles 32]

For every preset of LoRA Blocks, every choice of its projections, and single projections: style distance and prompt
accuracy as bench.style measures them, and the distance for each style factor, so that "late blocks" or "attention" is a
figure and not folklore.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch

from i2l_core.demo.sampler import Sampling
from i2l_core.errors import I2LError
from i2l_core.lora import LoRA, LowRank, Target
from i2l_core.mixing.block_weights import (
    ALL,
    EVERYWHERE,
    PRESETS,
    PROJECTIONS,
    BlockWeights,
    apply_block_weights,
)

from ._world import Bench, LoRAs, predict

_NO_ATTENTION = BlockWeights(mlp=0.0, other=0.0, q=0.0, k=0.0, v=0.0, out=0.0)
_CASES = {
    **PRESETS,
    **{name: replace(BlockWeights(), **where) for name, where in PROJECTIONS.items() if name != ALL},
    "q and k alone": replace(_NO_ATTENTION, q=1.0, k=1.0),
    "v alone": replace(_NO_ATTENTION, v=1.0),
    "attention out alone": replace(_NO_ATTENTION, out=1.0),
    "v and attention out alone": replace(_NO_ATTENTION, v=1.0, out=1.0),
}


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
        for name, where in _CASES.items():
            part = limit(loras, where)
            cases[name] = bench.paint(name, sampling, part, part) if part else cases["nowhere"]
        none, whole = cases["nowhere"], cases[EVERYWHERE]
        gain = float((none.style_distance - whole.style_distance).mean())
        result = {
            name: {
                **case.figures(),
                "share_of_gain": round(float((none.style_distance - case.style_distance).mean()) / gain, 3),
                "by_factor": {name: round(float(d.mean()), 3) for name, d in bench.factors(case).items()},
            }
            for name, case in cases.items()
        }
    print(json.dumps({**result, **bench.about()}))


def limit(loras: LoRAs, where: BlockWeights) -> LoRAs:
    """`apply_block_weights` on stacked LoRAs, empty when nothing is left: strengths are those of a LoRA of ones."""
    ones = {
        Target(w): LowRank(torch.ones(1, d.shape[2]), torch.ones(u.shape[1], 1))
        for w, (d, u) in loras.items()
    }
    try:
        parts = apply_block_weights(LoRA(ones), where).layers
    except I2LError:
        return {}
    return {t.weight: (loras[t.weight][0], loras[t.weight][1] * layer.up) for t, layer in parts.items()}


if __name__ == "__main__":
    main()
