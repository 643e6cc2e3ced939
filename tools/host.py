"""Which ComfyUI is used, with which Python, and how it is imported into a running Python.

`COMFYUI_PATH` names an existing installation; without it the one that `make setup` made in `.host/ComfyUI` is
used. `COMFYUI_PYTHON` names the Python to start it with, `COMFYUI_FRONT_END` the static files of another front end
than the one that this Python has.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import types
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN_HOST = ROOT / ".host" / "ComfyUI"
OWN_PYTHON = ROOT / ".venv" / "bin" / "python"
PACKAGE = "i2l"
PACK_FOLDER = "ComfyUI-i2L"


class HostError(RuntimeError):
    """No usable ComfyUI; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI installation: `path` holds main.py, `python` is the interpreter that has its requirements.

    `front_end`: a folder with the static files of a front end, when it is not that of `python`.
    """

    path: Path
    python: Path
    own: bool
    front_end: Path | None = None

    def __post_init__(self) -> None:
        for name in ("main.py", "folder_paths.py", "comfy"):
            if not (self.path / name).exists():
                where = (
                    "run `make setup`" if self.own else "set COMFYUI_PATH to the folder that holds main.py"
                )
                raise HostError(f"No ComfyUI in {self.path} ({name} is missing): {where}.")
        if self.front_end is not None and not (self.front_end / "index.html").is_file():
            raise HostError(
                f"No front end in {self.front_end} (index.html is missing): set COMFYUI_FRONT_END to the folder "
                "static of a package comfyui-frontend-package."
            )
        if not self.python.exists():
            where = (
                "run `make setup`" if self.own else "set COMFYUI_PYTHON to the Python that runs this ComfyUI"
            )
            raise HostError(f"No Python at {self.python}: {where}.")


def find_host() -> Host:
    """The host named by the environment, or the one that `make setup` made. Raises HostError."""
    named, front_end = (
        Path(value).expanduser().resolve() if (value := os.environ.get(name, "").strip()) else None
        for name in ("COMFYUI_PATH", "COMFYUI_FRONT_END")
    )
    if named is None:
        return Host(OWN_HOST, OWN_PYTHON, True, front_end)
    return Host(named, _python_of(named), False, front_end)


def _python_of(path: Path) -> Path:
    """COMFYUI_PYTHON, else a virtual environment in or beside the installation, else python3 on PATH."""
    named = os.environ.get("COMFYUI_PYTHON", "").strip()
    if named:
        found = shutil.which(named)
        return Path(found) if found else Path(named).expanduser()
    candidates = [
        path / ".venv/bin/python",
        path / "venv/bin/python",
        path / ".venv/Scripts/python.exe",
        path / "venv/Scripts/python.exe",
        path.parent / "python_embeded/python.exe",  # the Windows portable build spells it so
    ]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    return Path(shutil.which("python3") or sys.executable)


def as_package() -> types.ModuleType:
    """Make the repository importable as `i2l`; its root on sys.path would hide the host's `nodes`."""
    if PACKAGE not in sys.modules:
        module = types.ModuleType(PACKAGE, "The pack, as a package.")
        module.__path__ = [str(ROOT)]
        sys.modules[PACKAGE] = module
    return sys.modules[PACKAGE]


def import_host(base: Path, cpu: bool = True, path: Path | None = None) -> types.ModuleType:
    """Import the real `comfy` into this process; its folders (models, output, ...) go under `base`.

    path: the ComfyUI folder; default: the one `find_host` names.
    cpu: compute everything in float32 on the CPU.
    Must run before anything else imports `comfy`: the host reads its options once, at import.
    """
    if "comfy.model_management" in sys.modules:
        return sys.modules["comfy"]
    folder = str(path or find_host().path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # the defaults: only main.py makes the host parse a command line
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = cpu
    args.force_fp32 = cpu
    args.disable_api_nodes = True
    args.base_directory = str(base)
    for name in ("input", "output", "temp", "user", "custom_nodes", "models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    importlib.import_module("comfy.model_management")
    return importlib.import_module("comfy")
