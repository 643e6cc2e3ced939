"""The list of predictor families, used by nodes, commands and `inspect`."""

from __future__ import annotations

import os
from pathlib import Path

from ..files.safetensors import read_header
from .base import Family, Options, Predictor, Runtime, Source
from .query.predictor import QUERY
from .template.predictor import TEMPLATE
from .v1.predictor import V1

FAMILIES: tuple[Family, ...] = (TEMPLATE, V1, QUERY)


def family_of(source: Source) -> Family | None:
    """The family of a file or folder, from its tensor names and metadata; None if it is not a predictor."""
    return next((family for family in FAMILIES if family.recognise(source)), None)


def read_source(path: Path) -> Source:
    """The header of a file, or a folder. Raises I2LError naming the file if it is not a complete safetensors file."""
    return Source(path, None if os.path.isdir(path) else read_header(path))


def open_predictor(path: Path, runtime: Runtime, options: Options | None = None) -> Predictor:
    """Read a predictor from a file or folder of models/i2l.

    Raises I2LError if it is not a predictor, naming the file and what it seems to be.
    """
    family = family_of(read_source(path)) or QUERY  # whose loader says best what another file is
    return family.load(path, runtime, options or Options())
