"""A file or folder of models/i2l -> the predictor it holds: the family is told from what is there."""

from __future__ import annotations

from pathlib import Path

from .predictor import HostPredictor
from .query_predictor import load_query_predictor
from .template_predictor import load_template_predictor


def open_predictor(path: Path, allow_code: bool = False) -> HostPredictor:
    """Read a predictor and hand it to the host. Raises I2LError naming the file when it is none.

    `allow_code`: whether the user lets the program of a Diffusion Template run; no file needs that.
    """
    if path.is_dir():
        return load_template_predictor(path, allow_code)
    return load_query_predictor(path)
