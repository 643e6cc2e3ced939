"""The workflows that ship, made: `python -m tools.workflows` writes them anew after a schema has changed.

What each says about itself is a file in notes/; what it holds is a function in `tiny`, `infinity` or `real`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .graph import Workflow
from .infinity import INFINITY
from .real import REAL
from .tiny import TINY

NOTES = Path(__file__).parent / "notes"


def made(object_info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of the file without .json -> the workflow. `object_info`: of a server with the pack."""
    found: dict[str, dict[str, Any]] = {}
    for name, build in {**TINY, **INFINITY, **REAL}.items():
        flow = Workflow(name, object_info)
        flow.note((NOTES / f"{name}.md").read_text("utf-8"), "About this workflow")
        build(flow)
        found[name] = flow.as_json()
    return found
