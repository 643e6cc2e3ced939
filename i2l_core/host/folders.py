"""Where predictors and LoRAs are: ComfyUI's folder list, with whatever extra_model_paths.yaml adds to it."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..errors import I2LError
from ..new_file import SUFFIX

PREDICTORS = "i2l"
LORAS = "loras"


def register_predictors() -> None:
    """Tell ComfyUI of models/i2l, for .safetensors files only. Paths it has already stay."""
    folder_paths.add_model_folder_path(PREDICTORS, os.path.join(folder_paths.models_dir, PREDICTORS))
    # a folder new to the host lists every file: replace its extensions, keep its paths
    paths, _ = folder_paths.folder_names_and_paths[PREDICTORS]
    folder_paths.folder_names_and_paths[PREDICTORS] = (paths, {SUFFIX})


def predictor_files() -> list[str]:
    """Names of the predictor files, relative to their folders."""
    register_predictors()
    return folder_paths.get_filename_list(PREDICTORS)


def predictor_path(name: str) -> Path:
    """The file of a name in `predictor_files()`. Raises I2LError saying where predictors belong."""
    files = predictor_files()
    if not files:
        raise I2LError(
            f"there is no predictor yet: put a .safetensors predictor file into {_predictors_folder()}"
        )
    path = folder_paths.get_full_path(PREDICTORS, name) if name in files else None
    if path is None:
        raise I2LError(
            f"there is no predictor file {name[:120]!r} in {_predictors_folder()}; choose one of the list"
        )
    return Path(path)


def lora_files() -> list[str]:
    """Names of the safetensors files among the user's LoRAs, relative to their folders."""
    return [name for name in folder_paths.get_filename_list(LORAS) if name.lower().endswith(SUFFIX)]


def lora_path(name: str) -> Path:
    """The file of a name in `lora_files()`. Raises I2LError saying where LoRAs belong."""
    path = folder_paths.get_full_path(LORAS, name) if name in lora_files() else None
    if path is None:
        raise I2LError(
            f"there is no LoRA file {name[:120]!r} in {folder_paths.get_folder_paths(LORAS)[0]}; choose one of "
            "the list, or put a .safetensors LoRA there"
        )
    return Path(path)


def fingerprint(path: Path) -> str:
    """Changes when the file does."""
    about = path.stat()
    return f"{about.st_mtime_ns}-{about.st_size}"


def loras_folder() -> Path:
    """The first folder for LoRAs that can be written; one that does not exist yet counts if it can be made.

    Raises I2LError naming the folders when there is none.
    """
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(LORAS)]
    for folder in [*filter(Path.is_dir, folders), *(folder for folder in folders if not folder.exists())]:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            return folder
    listed = ", ".join(str(folder) for folder in folders)
    raise I2LError(
        f"no folder for LoRAs can be written: {listed or 'none is configured'}; check their permissions"
    )


def _predictors_folder() -> str:
    return folder_paths.get_folder_paths(PREDICTORS)[0]
