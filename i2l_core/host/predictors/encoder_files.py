"""Find the image encoders of i2L version 1 among the models of the user, by content and not by file name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ...encoders import PooledConfig, peek_pooled
from ...encoders.files import EncoderFile
from ...files.atomic import SUFFIX
from ...files.fingerprint import fingerprint
from ..folders import PREDICTORS, register_predictors

CLIP_VISION = "clip_vision"


def encoder_files() -> Iterator[EncoderFile]:
    """All image encoder files of both kinds, of any size."""
    register_predictors()
    for folder in (CLIP_VISION, PREDICTORS):
        for name in folder_paths.get_filename_list(folder):
            path = folder_paths.get_full_path(folder, name) if name.endswith(SUFFIX) else None
            if path is None:
                continue
            id = f"{path} {fingerprint(Path(path))}"
            config = _recognised(path, id)
            if config is not None:
                yield EncoderFile(Path(path), config, id)


@functools.lru_cache(maxsize=1024)
def _recognised(path: str, id: str) -> PooledConfig | None:
    """`id`: of the file as it is now, so that a changed one is read again."""
    return peek_pooled(Path(path))
