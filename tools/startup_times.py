"""Read ComfyUI's own "Import times for custom nodes" lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

_HEADING = "Import times for custom nodes:"
_LINE = re.compile(r"(?P<seconds>\d+\.\d+) seconds(?P<failed> \(IMPORT FAILED\))?: (?P<path>.+?)\s*$")


@dataclass(frozen=True)
class ImportTime:
    """What the server says about one pack: its folder, the seconds (to one decimal), whether it loaded."""

    pack: str
    seconds: float
    loaded: bool


def import_times(log: str) -> list[ImportTime]:
    """The times in a server log, in its order; empty when the server has not come so far."""
    _, heading, rest = log.partition(_HEADING)
    found: list[ImportTime] = []
    for line in rest.splitlines()[1:] if heading else []:
        match = _LINE.search(line)
        if match is None:
            break
        found.append(
            ImportTime(PurePath(match["path"]).name, float(match["seconds"]), loaded=match["failed"] is None)
        )
    return found
