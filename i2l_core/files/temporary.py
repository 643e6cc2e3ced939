"""Temporary files that tell whether the process that writes them still lives.

The writer holds a lock on its file, which the system lets go of when the process ends, however it ends. Where there are
no such locks (Windows, some network drives) a file that nobody has written to for a day counts as abandoned.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_START, _END = ".i2l-", ".tmp"
_DAY = 24 * 60 * 60


@contextlib.contextmanager
def hold_temporary(folder: Path) -> Iterator[Path]:
    """A context with an empty file of a new name in `folder`, and ours until it ends; what is left of it then goes.

    A file moves in one step only within one file system: hence in the same folder.
    """
    path, lock = _create(folder)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # gone after success; and the first error is the one to tell
            path.unlink()
        if lock is not None:
            os.close(lock)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder whose writer has ended. What cannot be removed stays, for another time."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(_START) and entry.name.endswith(_END):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _create(folder: Path) -> tuple[Path, int | None]:
    """(path, descriptor that holds the lock). Between creating and locking another process may take the file for
    abandoned: then there is another try."""
    while True:
        path = folder / f"{_START}{uuid.uuid4().hex}{_END}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            os.close(descriptor)
            return path, None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the other process has it, to remove it
            os.close(descriptor)
            continue
        except OSError:  # no locks here
            os.close(descriptor)
            return path, None
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    old = time.time() - path.stat().st_mtime > _DAY
    if fcntl is None:
        if old:
            path.unlink()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its writer lives
        return
    except OSError:  # no locks here
        if old:
            path.unlink()
        return
    else:
        path.unlink()
    finally:
        os.close(descriptor)
