"""A file that is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path in the same folder to write to. What lies there at the end of the block takes the place of `path`.

    It is on the disk before it does; after an error it is gone and `path` is as it was. Lets errors through.
    """
    temporary = path.parent / f".i2l-{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # gone after success; and the first error is the one to tell
            temporary.unlink()
