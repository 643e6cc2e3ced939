"""A copy of the pack under a package name of its own, to change it, or to leave files out."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def imported_as(name: str, folder: Path) -> Iterator[Callable[[str], types.ModuleType]]:
    """Within it, a function that imports modules of the pack in `folder`, as `name`.MODULE; afterwards all are gone."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    try:
        yield lambda module: importlib.import_module(f"{name}.{module}")
    finally:
        for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[module]
