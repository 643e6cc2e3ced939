"""Which family a file or folder of models/i2l belongs to, from what is there alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..files.safetensors import open_safetensors
from .v1.kinds import kind_of

Family = Literal["query", "v1", "template"]


def family_of(path: Path) -> Family:
    """The family whose loader reads this path, or says best what is wrong with it.

    A folder is a template's; a file without the names of version 1 is the query family's to judge. Raises I2LError
    naming the file when it is no whole safetensors file.
    """
    if path.is_dir():
        return "template"
    with open_safetensors(path) as file:
        return "v1" if kind_of(file.keys()) else "query"
