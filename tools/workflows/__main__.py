"""`python -m tools.workflows`: make the shipped workflows from the schemas of a real server, over what is there; each
also as the API takes it, in workflows/api."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..comfy_server import ComfyServer
from ..graph_to_api import graph_to_api
from ..host import ROOT
from . import made

FOLDER = ROOT / "workflows"


def write(object_info: Mapping[str, Any]) -> None:
    for name, workflow in made(object_info).items():
        _write(FOLDER / f"{name}.json", workflow)
        _write(FOLDER / "api" / f"{name}.json", graph_to_api(workflow, object_info))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path}\n")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="i2l-workflows-") as base, ComfyServer(Path(base)) as server:
        write(server.client().object_info())


if __name__ == "__main__":
    main()
