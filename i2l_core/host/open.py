"""A file or folder of models/i2l -> the predictor it holds: the family is told from what is there."""

from __future__ import annotations

from pathlib import Path

from .predictor import HostPredictor
from .query_predictor import load_query_predictor


def open_predictor(path: Path) -> HostPredictor:
    """Read a predictor and hand it to the host. Raises I2LError naming the file when it is none."""
    return load_query_predictor(path)
