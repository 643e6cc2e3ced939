"""Hostile files and texts of every kind against the pack's readers.

    python -m bench.fuzz [--cases N | --minutes N] [--seed S] [--kinds NAME ...] [--keep FOLDER]

Every case must be refused with the pack's own error of one line, or accepted with exactly its values, within two
seconds of processor time and 256 MB. Cases run in a process of their own with these limits. The last line counts the
others: `raw` (another library's error, or a message of several lines), `hangs` (time or memory), `wrong` (accepted
with other values). A case is made from the seed, its number and its kind alone. Needs Linux.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

from .worker import Failure, failures

_KEPT = 1024  # bytes of an input that is kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="as many cases as fit into this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to see one again")
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--keep", type=Path, help="folder for failing inputs of at most 1 KB")
    options = parser.parse_args()
    keep = options.keep or Path(tempfile.mkdtemp(prefix="i2l-fuzz-"))
    until = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    last = 1 << 60 if options.minutes else options.first + options.cases
    found: Counter[str] = Counter()
    done = options.first
    for at, failure in failures(options.seed, range(options.first, last), tuple(options.kinds), until):
        done = at
        if failure is not None:
            found[failure.verdict] += 1
            print(f"case {failure.number} {failure.kind}: {failure.verdict}: {failure.reason}", flush=True)
            _keep(keep, options.seed, failure)
    print(f"failing inputs are in {keep}" if found else "no input failed")
    print(f"raw {found['raw']}, hangs {found['hang']}, wrong {found['wrong']}, cases {done - options.first}")


def _keep(folder: Path, seed: int, failure: Failure) -> None:
    if 0 < len(failure.content) <= _KEPT:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{failure.kind}-{seed}-{failure.number}").write_bytes(failure.content)


if __name__ == "__main__":
    main()
