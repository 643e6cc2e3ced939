"""Read style libraries: folders whose sub-folders hold the pictures of one style each."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import folder_paths

from ..checks import listed
from ..errors import I2LError, one_line
from ..files.atomic import safe_join
from ..files.fingerprint import stamp
from ..predictors.base import Progress
from ..references import Reference
from ..references.files import SUFFIXES, read_reference
from .folders import with_slashes

EXAMPLES = "(examples of i2L)"  # the library that ships with the pack, beside those of the input folder
_SHIPPED = Path(__file__).resolve().parents[2] / "workflows" / "library"

LARGEST = 1024  # pixels of the longer side: no encoder looks closer
_MOST_FOLDERS = 10_000  # that are looked at for the list of a widget


class FolderStyle(Sequence[Reference]):
    """The pictures of one style, loaded on access, so that only one style is in memory at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return FolderStyle(self._paths[index])
        return read_reference(self._paths[index], largest=LARGEST)


@dataclass(frozen=True)
class Library:
    """Styles by folder name, and one line for each picture that could not be read."""

    styles: dict[str, FolderStyle]
    failures: tuple[str, ...]

    def __str__(self) -> str:
        pictures = sum(map(len, self.styles.values()))
        text = f"{len(self.styles)} styles, {pictures} pictures"
        return "\n".join([text, *(f"left out: {failure}" for failure in self.failures)])


def library_folders() -> list[str]:
    """Folders in ComfyUI's input folder that hold a folder with pictures, relative to it, in order."""
    root = _root()
    return sorted(
        {path.parent.relative_to(root).as_posix() for path in _picture_folders(root) if path != root}
    )


def library_path(name: str) -> Path:
    """The folder of a name in `library_folders()`, or of EXAMPLES; slashes may lean either way: workflows travel.

    Raises I2LError when there is none, or it leaves the input folder.
    """
    return _inside(name)[0]


def read_library(name: str, most: int, progress: Progress | None = None) -> Library:
    """The styles in a folder of `library_folders()`, or in EXAMPLES, of each the first `most` pictures by name.

    Every picture is read once, to tell now which are broken: they are left out and named, and so are styles
    without any that can be read. Stops with the host's own exception when the user cancels. Raises I2LError when
    the folder leaves the input folder or holds no style that can be read.
    """
    folder, root = _inside(name)
    styles, failures = {}, []
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for done, path in enumerate(folders, 1):
        if problem := _problem(path, root):
            failures.append(f"{path.name}: {problem}")
            continue
        good = []
        for picture in _pictures(path, root):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if len(good) == most:
                break
            try:
                read_reference(picture, largest=LARGEST)
            except I2LError as error:
                failures.append(str(error).replace(str(picture), f"{path.name}/{picture.name}"))
            else:
                good.append(picture)
        if good:
            styles[path.name] = FolderStyle(good)
        else:
            failures.append(f"{path.name}: it holds no picture that can be read")
        if progress:
            progress(done, len(folders))
    failures = [one_line(failure) for failure in failures]
    for failure in failures:
        logging.warning("i2L: left out %s", failure)
    if not styles:
        raise I2LError(
            f"there is no style in {folder}: expected a sub-folder of pictures for each style"
            + (f"; {listed(failures)}" if failures else "")
        )
    return Library(styles, tuple(failures))


def fingerprint_library(name: str) -> str:
    """Changes when a picture of the folder is added, removed or written anew."""
    folder, root = _inside(name)
    about = [
        (str(path), path.stat())
        for one in sorted(folder.iterdir())
        if one.is_dir()
        for path in _pictures(one, root)
    ]
    text = "".join(f"{path} {stamp(stat)};" for path, stat in about)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _root() -> Path:
    return Path(folder_paths.get_input_directory()).resolve()


def _inside(name: str) -> tuple[Path, Path]:
    """(the folder of a name, the folder that nothing read from it may lead out of)."""
    if name == EXAMPLES:
        return _SHIPPED, _SHIPPED
    root = _root()
    try:
        path = (root / (name if os.path.isdir(root / name) else with_slashes(name))).resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, NUL, half a character
        path = Path()
    if not path.is_relative_to(root) or not os.path.isdir(path):
        raise I2LError(
            f"there is no folder {name[:120]!r} in {root}; make one there, with a sub-folder of pictures for each "
            "style, and press R"
        )
    return path, root


def _problem(folder: Path, root: Path) -> str:
    """Why a folder cannot be a style, or nothing."""
    if not folder.resolve().is_relative_to(root):
        return "it is a link that leads out of the input folder"
    try:
        safe_join(root, folder.name)
    except I2LError:
        return "a LoRA could not be saved under this name; rename the folder"
    return ""


def _pictures(folder: Path, root: Path) -> list[Path]:
    """The picture files directly in a folder that do not lead out of `root`, by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if path.resolve().is_relative_to(root))


def _picture_folders(root: Path) -> Iterator[Path]:
    for count, (folder, inner, files) in enumerate(os.walk(root)):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if any(Path(name).suffix.lower() in SUFFIXES for name in files):
            yield Path(folder)
        if count == _MOST_FOLDERS:
            return
