"""The folders of predictors and LoRAs, from ComfyUI's list, with those of extra_model_paths.yaml.

A predictor is a .safetensors file, or a folder with a program, a Diffusion Template, whose name ends with "/".
"""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..errors import I2LError
from ..files.atomic import SUFFIX
from ..predictors.template.read import PROGRAM

PREDICTORS = "i2l"
LORAS = "loras"


def register_predictors() -> None:
    """Register models/i2l with ComfyUI, for .safetensors files. Existing paths stay."""
    folder_paths.add_model_folder_path(PREDICTORS, os.path.join(folder_paths.models_dir, PREDICTORS))
    # a folder new to the host lists every file: replace its extensions, keep its paths
    paths, _ = folder_paths.folder_names_and_paths[PREDICTORS]
    folder_paths.folder_names_and_paths[PREDICTORS] = (paths, {SUFFIX})


def predictor_names() -> list[str]:
    """Names of the predictors, relative to their folders. What lies in a template's folder belongs to it."""
    register_predictors()
    templates = _templates()
    files = [
        name
        for name in folder_paths.get_filename_list(PREDICTORS)
        if not any(Path(name).is_relative_to(template) for template in templates.values())
    ]
    return sorted([*templates, *files])


def predictor_path(name: str) -> Path:
    """The file or folder of a name in `predictor_names()`. Raises I2LError saying where predictors belong."""
    names = predictor_names()
    if not names:
        raise I2LError(
            "there is no predictor yet: put a .safetensors predictor file, or the folder of a Diffusion Template, "
            f"into {predictor_roots()[0]}; the help of Load i2L Predictor says where to get one"
        )
    known = _listed_as(name, names)
    path = _full_path(known) if known else None
    if path is None:
        kind = f"folder {name[:120]!r} with a {PROGRAM}" if name.endswith("/") else f"file {name[:120]!r}"
        raise I2LError(f"there is no predictor {kind} in {predictor_roots()[0]}; choose one from the list")
    return path


def predictor_roots() -> list[Path]:
    """The folders that predictors are looked for in."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(PREDICTORS)]


def lora_files() -> list[str]:
    """Names of the safetensors files among the user's LoRAs, relative to their folders."""
    return [name for name in folder_paths.get_filename_list(LORAS) if name.lower().endswith(SUFFIX)]


def lora_path(name: str) -> Path:
    """The file of a name in `lora_files()`. Raises I2LError saying where LoRAs belong."""
    known = _listed_as(name, lora_files())
    path = folder_paths.get_full_path(LORAS, known) if known else None
    if path is None:
        raise I2LError(
            f"there is no LoRA file {name[:120]!r} in {folder_paths.get_folder_paths(LORAS)[0]}; choose one from "
            "the list, or put a .safetensors LoRA there"
        )
    return Path(path)


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


def with_slashes(name: str) -> str:
    """Windows writes style\\ink where others write style/ink."""
    return name.replace("\\", "/")


def _templates() -> dict[str, Path]:
    """Name -> folder, relative to the one it was found in, of every folder with a program."""
    found: dict[str, Path] = {}
    for root in predictor_roots():
        files, _ = folder_paths.recursive_search(str(root), [".git", "__pycache__"])
        folders = {Path(file).parent for file in files if os.path.basename(file) == PROGRAM} - {Path()}
        outermost = (folder for folder in folders if folders.isdisjoint(folder.parents))
        found |= {f"{folder.as_posix()}/": folder for folder in outermost}
    return found


def _listed_as(name: str, names: list[str]) -> str | None:
    """How this computer lists a file: workflows travel."""
    same = (one for one in names if with_slashes(one) == with_slashes(name))
    return name if name in names else next(same, None)


def _full_path(name: str) -> Path | None:
    if name.endswith("/"):
        return next((root / name for root in predictor_roots() if (root / name / PROGRAM).is_file()), None)
    path = folder_paths.get_full_path(PREDICTORS, name)
    return Path(path) if path else None
