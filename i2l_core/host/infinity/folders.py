"""The files of Infinity among the models of the user, in ComfyUI's own folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...errors import I2LError
from ...files.fingerprint import fingerprint
from ...infinity.files import shard_names
from ..folders import with_slashes
from .read import SUFFIXES

MODELS, TEXTS, VAES = "diffusion_models", "text_encoders", "vae"


def file_names(folder: str) -> list[str]:
    """Names of the files of weights in a folder of models; of a model in several files, the first."""
    return [name for name in folder_paths.get_filename_list(folder) if _is_first(with_slashes(name))]


def file_path(folder: str, name: str) -> Path:
    """The file of a name in `file_names`. Raises I2LError saying where it belongs."""
    same = (one for one in file_names(folder) if with_slashes(one) == with_slashes(name))
    known = next(same, None)
    path = folder_paths.get_full_path(folder, known) if known else None
    if path is None:
        raise I2LError(
            f"there is no file {name[:120]!r} in {folder_paths.get_folder_paths(folder)[0]}; choose one from the "
            "list, or put it there"
        )
    return Path(path)


def files_fingerprint(folder: str, name: str) -> str:
    """Changes when the file of a name does, or another file of the same model. Raises I2LError as `file_path`."""
    path = file_path(folder, name)
    parts = (path.with_name(part) for part in shard_names(path.name))
    return " ".join(fingerprint(part) if part.is_file() else "missing" for part in parts)


def _is_first(name: str) -> bool:
    if not name.lower().endswith(SUFFIXES):
        return False
    try:
        return shard_names(Path(name).name)[0] == Path(name).name
    except I2LError:
        return False
