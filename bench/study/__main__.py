"""`python -m bench.study [PART ...] [--styles N] [--steps N]`: the study, part by part, as JSON in docs/study.

Parts: fidelity, trained, cost, leakage, guidance, curves, learned, composition, templates, tone, structure, infinity;
without one, all. Each is written when it is done, so a run that was stopped goes on with `--missing`. What is compared
with (an adapter, pairs of equal content) is measured where `python -m bench.study.variants` has trained it. `plots`
draws what has been measured, `sheet` twelve styles, with predicted LoRAs and with Infinity.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._world import Bench
from . import (
    composition,
    cost,
    curves,
    fidelity,
    guidance,
    infinity,
    infinity_sheet,
    leakage,
    learned,
    plots,
    results,
    sheet,
    structure,
    tables,
    templates,
    tone,
    trained,
)

FOLDER = Path("docs/study")
_STEPS = 8  # of sampling; twelve bring a style distance that is 0.002 smaller


@dataclass(frozen=True)
class Part:
    """What a part runs on; `styles` unless told."""

    run: Callable[[Bench, int], dict[str, Any]]  # (bench, steps of sampling) -> figures
    styles: int
    references: int
    prompts: int = 1
    samples: bool = True  # many pictures, so that compiling pays


PARTS = {
    "fidelity": Part(fidelity.run, 500, 8),
    "trained": Part(trained.run, 32, 8, 2),
    "cost": Part(cost.run, 8, 1, samples=False),
    "leakage": Part(leakage.run, 500, 1),
    "guidance": Part(guidance.run, 96, 4),
    "curves": Part(curves.run, 32, 4),
    "learned": Part(learned.run, 500, 8, samples=False),
    "composition": Part(composition.run, 16, 4, samples=False),
    "templates": Part(templates.run, 64, 4, samples=False),
    "tone": Part(tone.run, 96, 1),
    "structure": Part(structure.run, 500, 1),
    "infinity": Part(infinity.run, 500, 4, samples=False),
}
DRAWN = ("plots", "sheet")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join((*PARTS, *DRAWN))
    parser.add_argument("parts", nargs="*", metavar="PART", help=known)
    parser.add_argument("--styles", type=int, help="instead of each part's own number")
    parser.add_argument("--steps", type=int, default=_STEPS, help="of sampling")
    parser.add_argument("--missing", action="store_true", help="only parts that are not in docs/study")
    parser.add_argument("--no-compile", action="store_true", help="for machines without a C++ compiler")
    parser.add_argument("--json", action="store_true", help="print the results too, and nothing but them")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    unknown = set(options.parts) - {*PARTS, *DRAWN}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {known}")
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in options.parts or PARTS:
        if name in DRAWN or (options.missing and results.path_of(options.out, name).exists()):
            continue
        if not options.json:
            sys.stderr.write(f"== {name}\n")
        found[name] = measured(PARTS[name], options)
        results.write(options.out, name, found[name])
    if not options.parts or "plots" in options.parts:
        plots.draw(options.out)
        tables.write(options.out)
    if not options.parts or "sheet" in options.parts:
        sheet.draw()
        infinity_sheet.draw()
    if options.json:
        print(json.dumps(found))


def measured(part: Part, options: argparse.Namespace) -> dict[str, Any]:
    """A part's figures, with what they were taken on."""
    torch.compiler.reset()  # so many shapes are compiled before dynamo gives up
    compiled = part.samples and not options.no_compile
    bench = Bench(
        options.styles or part.styles, not options.json, part.references, part.prompts, compiled=compiled
    )
    about = {"steps": options.steps, "references": part.references, "prompts": part.prompts}
    with torch.no_grad():
        return {**about, **part.run(bench, options.steps), **bench.about()}


if __name__ == "__main__":
    main()
