"""`python -m tools.workflows`: make the shipped workflows from the schemas of a real server, over what is there."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..comfy_server import ComfyServer
from ..host import ROOT
from . import made

FOLDER = ROOT / "workflows"


def write(object_info: Mapping[str, Any]) -> None:
    for name, workflow in made(object_info).items():
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.stdout.write(f"{path}\n")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="i2l-workflows-") as base, ComfyServer(Path(base)) as server:
        write(server.client().object_info())


if __name__ == "__main__":
    main()
