"""Import ComfyUI without its server, for commands that need its models."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from ..errors import I2LError
from .symbols import check_host

_PACK = Path(__file__).resolve().parents[2]


def start_host(cpu: bool) -> None:
    """Import `comfy`, once. `cpu`: compute everything on the CPU in float32.

    ComfyUI is the one that COMFYUI_PATH names, else the one whose custom_nodes the pack is in, else that of
    `make setup`. Raises I2LError when there is none.
    """
    if "comfy.model_management" in sys.modules:
        return
    sys.path.insert(0, str(_find()))
    # only main.py makes the host parse a command line: the rest are its defaults
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = args.force_fp32 = cpu
    args.use_pytorch_cross_attention = True  # has gradients everywhere, and needs no memory to be guessed
    importlib.import_module("comfy.model_management")
    check_host()


def _find() -> Path:
    named = os.environ.get("COMFYUI_PATH", "").strip()
    places = [Path(named).expanduser()] if named else [_PACK.parents[1], _PACK / ".host" / "ComfyUI"]
    for place in places:
        if (place / "comfy" / "model_base.py").is_file():
            return place.resolve()
    raise I2LError(
        f"there is no ComfyUI in {' or '.join(map(str, places))}: set COMFYUI_PATH to the folder that holds its main.py"
    )
