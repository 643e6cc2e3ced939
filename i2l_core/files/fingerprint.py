"""Tell whether a file has changed, for whatever is cached by file.

Size and modification time do not do: `cp -p`, `tar x` and `rsync -t` give another file the same ones.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import I2LError

_SAMPLES, _SAMPLE = 64, 1 << 16  # places in a file, bytes read at each


def content_fingerprint(path: Path) -> str:
    """Of a file's size and of four megabytes spread evenly over it: tells large files of weights apart at no cost.

    Raises I2LError when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            for place in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * place // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    except (OSError, ValueError) as error:  # a name with NUL
        raise I2LError(f"cannot read {path}: {error}") from error
    return digest.hexdigest()[:16]


def stamp(about: os.stat_result) -> str:
    """What the file system says of a file: which one it is, and when it was written or moved there.

    The time of the last change of its entry cannot be set by programs; on Windows it is the time of creation.
    """
    return f"{about.st_ino} {about.st_ctime_ns} {about.st_mtime_ns} {about.st_size}"


def fingerprint(path: Path) -> str:
    """Changes when a file does, or any file of a folder: stamps, and of a single file samples of its content too.

    Raises I2LError when it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(os.fsencode(file.relative_to(path)) + f":{stamp(file.stat())};".encode())
    except (OSError, ValueError) as error:
        raise I2LError(f"cannot read {path}: {error}") from error
    return digest.hexdigest() if path.is_dir() else digest.hexdigest() + content_fingerprint(path)
