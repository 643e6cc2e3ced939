"""What has been measured: a JSON file for each part of the study, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def path_of(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def write(folder: Path, part: str, figures: dict[str, Any]) -> None:
    path_of(folder, part).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def read(folder: Path, parts: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part, figures) of those that are there."""
    for part in parts:
        if (path := path_of(folder, part)).exists():
            yield part, json.loads(path.read_text("utf-8"))
