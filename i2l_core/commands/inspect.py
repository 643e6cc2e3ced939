"""`python -m i2l_core inspect PATH`: say what a file or folder is and where it belongs, from its header alone."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import I2LError
from ..inspection import Inspection, TensorGroup, inspect_path

MOST_GROUPS = 40
MOST_ENTRIES = 40  # of the metadata
MOST_TEXT = 200  # characters of anything that a file says


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m i2l_core inspect",
        description="Says what a file or folder is and where it belongs. Reads only headers and runs no code.",
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a model, LoRA, predictor or encoder file, or a folder"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        inspection = inspect_path(options.path)
    except I2LError as error:
        sys.stderr.write(f"{_plain(str(error), 1000)}\n")
        return 1
    lines = [json.dumps(asdict(inspection))] if options.json else _lines(options.path, inspection)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _lines(path: Path, inspection: Inspection) -> Iterator[str]:
    tensors = sum(group.count for group in inspection.groups)
    values = sum(group.count * math.prod(group.shape) for group in inspection.groups)
    size = f", {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else ""
    counted = f", {tensors} tensors, {values / 1e6:.1f} million values" if inspection.groups else ""
    yield f"{_plain(path.name)}{size}{counted}"
    yield f"  what   {_plain(inspection.verdict, 1000)}"
    yield f"  to do  {_plain(inspection.advice, 1000)}"
    if inspection.groups:
        yield ""
        groups = sorted(inspection.groups, key=lambda group: -group.count * math.prod(group.shape))
        rows = [_row(group) for group in groups[:MOST_GROUPS]]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for count, shape, dtype, name in rows:
            yield f"  {count:>{widths[0]}} x {shape:>{widths[1]}} {dtype:<{widths[2]}}  {name}"
        yield from _more(len(groups) - MOST_GROUPS, "shapes")
    if inspection.metadata:
        yield ""
        for key in sorted(inspection.metadata)[:MOST_ENTRIES]:
            yield f"  {_plain(key)}: {_plain(inspection.metadata[key])}"
        yield from _more(len(inspection.metadata) - MOST_ENTRIES, "entries")


def _row(group: TensorGroup) -> tuple[str, str, str, str]:
    shape = "x".join(map(str, group.shape)) or "one value"
    return str(group.count), shape, group.dtype, _plain(group.name)


def _more(count: int, what: str) -> Iterator[str]:
    if count > 0:
        yield f"  and {count} more {what}"


def _plain(text: str, most: int = MOST_TEXT) -> str:
    """Untrusted text on one line, without control characters."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: most + 1])
    return shown if len(text) <= most else f"{shown[:most]}..."
