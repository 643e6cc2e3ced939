"""Atomic writing: a new file under the next free name, or a file in place of an old one.

What is not finished has a temporary name in the same folder. A process that is killed leaves it behind; the next one
that writes there removes it (`temporary`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import I2LError, first_line
from .temporary import hold_temporary, remove_abandoned

SUFFIX = ".safetensors"

# of one file or folder name; leaves room for a number and the temporary name within 255
_MAX_PART_BYTES = 200
_FORBIDDEN = frozenset('<>:"|?*\\')
# devices on Windows, with any extension: learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
_NO_HARD_LINKS = frozenset(
    [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL]
)


def safe_join(folder: str | Path, name: str) -> Path:
    """The path of the file `name` inside `folder`, with the suffix ".safetensors". Writes nothing.

    `name` may hold subfolders, separated by "/". The rules of Windows hold everywhere, so that what is saved
    on one machine can be copied to another. Raises I2LError if the name is invalid, or leads out of the folder,
    also through a link.
    """
    name = name.strip()
    parts = name.removesuffix(SUFFIX).split("/")
    for part in parts:
        problem = _problem(part)
        if problem:
            raise I2LError(
                f"cannot save under the name {name[:80]!r}: {problem}. Use a plain name such as style/ink"
            )
    root = Path(folder).resolve()
    path = root.joinpath(*parts[:-1], parts[-1] + SUFFIX)
    try:
        inside = path.resolve().is_relative_to(root)
        with contextlib.suppress(FileNotFoundError):
            path.parent.stat()  # from Python 3.13 on resolve() lets links to themselves pass
    except (OSError, RuntimeError) as error:  # a link to itself, a file for a folder
        raise I2LError(
            f"cannot save under the name {name[:80]!r}: {first_line(error)}; choose another folder"
        ) from error
    if not inside:
        raise I2LError(f"cannot save under the name {name[:80]!r}: a link leads out of the folder {root}")
    return path


def write_new(path: Path, content: bytes) -> Path:
    """Write a file at `path`, or with the next free number if that exists. Returns its path.

    A temporary file in the same folder is flushed to disk before it is renamed. After any error or interruption
    no partial file and no new folder remains and no existing file has changed. Errors are raised unchanged.
    """
    return write_new_by(path, lambda temporary: temporary.write_bytes(content))


def write_new_by(path: Path, write: Callable[[Path], object]) -> Path:
    """The same for what `write` puts into the empty file whose path it gets. It must not put another file there."""
    new_folders = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        with hold_temporary(path.parent) as temporary:
            write(temporary)
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            return next(candidate for candidate in _numbered(path) if _claim(temporary, candidate))
    except BaseException:
        for folder in new_folders:
            with contextlib.suppress(OSError):  # it may not be there yet, or not be empty any more
                folder.rmdir()
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context with a temporary path in the same folder; at its end that file replaces `path`.

    The file is flushed to disk first. After an error it is removed and `path` is unchanged. Errors are raised
    unchanged.
    """
    remove_abandoned(path.parent)
    with hold_temporary(path.parent) as temporary:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _problem(part: str) -> str:
    """What is wrong with a folder or file name; empty if nothing is."""
    if not part.strip():
        return "a part of it is empty"
    if part in (".", ".."):
        return f"{part!r} is not a name"
    if any(char in _FORBIDDEN or ord(char) < 32 or ord(char) == 127 for char in part):
        return 'it holds one of < > : " | ? * \\ or a control character'
    if part[-1] in ". " or part[0] == " ":
        return f"{part!r} begins with a space or ends with a dot or a space"
    if part.split(".")[0].rstrip().upper() in _RESERVED:
        return f"{part!r} is the name of a device on Windows"
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        return "it contains characters that are not text"
    return f"a part of it is longer than {_MAX_PART_BYTES} bytes" if size > _MAX_PART_BYTES else ""


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in range(2, 100_000):
        yield path.with_name(f"{path.name.removesuffix(SUFFIX)}_{number:05d}{SUFFIX}")
    raise I2LError(f"no free name is left for {path}; choose another name")


def _claim(temporary: Path, path: Path) -> bool:
    """Give the finished file its name; False when that name is taken, by however close a race."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _claim_without_links(temporary, path)
    return True


def _claim_without_links(temporary: Path, path: Path) -> bool:
    """For file systems without hard links: take the name with an empty file of our own, then replace that."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True
