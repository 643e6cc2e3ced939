"""`python -m bench.study [PART ...] [--styles N] [--steps N]`: the study, part by part, as JSON in docs/study.

Parts: fidelity, trained, leakage, guidance, curves, learned, composition; without one, all of them. Each is written
when it is done, so a run that was stopped goes on with `--missing`. What is compared with (an adapter, pairs of equal
content) is measured where `python -m bench.study.variants` has trained it. `plots` draws what has been measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import composition, curves, fidelity, guidance, leakage, learned, plots, trained

FOLDER = Path("docs/study")
PARTS: dict[str, tuple[Callable[[int, int, bool], dict[str, Any]], int]] = {  # and held-out styles by default
    "fidelity": (fidelity.run, 500),
    "trained": (trained.run, 32),
    "leakage": (leakage.run, 500),
    "guidance": (guidance.run, 128),
    "curves": (curves.run, 64),
    "learned": (learned.run, 256),
    "composition": (composition.run, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, plots")
    parser.add_argument("--styles", type=int, help="instead of each part's own number")
    parser.add_argument("--steps", type=int, default=12, help="of sampling")
    parser.add_argument("--missing", action="store_true", help="only parts that are not in docs/study")
    parser.add_argument("--json", action="store_true", help="print the results too, and nothing but them")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    unknown = set(options.parts) - {*PARTS, "plots"}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}, plots")
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in options.parts or PARTS:
        path = options.out / f"{name}.json"
        if name == "plots" or (options.missing and path.exists()):
            continue
        if not options.json:
            sys.stderr.write(f"== {name}\n")
        part, styles = PARTS[name]
        with torch.no_grad():
            results[name] = part(options.styles or styles, options.steps, not options.json)
        path.write_text(json.dumps({"steps": options.steps, **results[name]}, indent=1) + "\n", "utf-8")
    if not options.parts or "plots" in options.parts:
        plots.draw(options.out)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
