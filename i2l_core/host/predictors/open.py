"""A file or folder of models/i2l -> the predictor it holds: the family is told from what is there."""

from __future__ import annotations

from pathlib import Path

from ...predictors.family import family_of
from .base import HostPredictor
from .embeddings import Embeddings
from .query import load_query_predictor
from .template import load_template_predictor
from .v1 import load_v1_predictor

EMBEDDINGS = Embeddings()  # of the pictures that this server has seen, whatever predictors come and go


def open_predictor(path: Path, allow_code: bool = False, float8: bool | None = None) -> HostPredictor:
    """Read a predictor and hand it to the host. Raises I2LError naming the file when it is none.

    `allow_code`: whether the user lets the program of a Diffusion Template run; no file needs that.
    `float8`: keep large image encoders in 8 bits; None: where the card is too small for them in 16.
    """
    family = family_of(path)
    if family == "template":
        return load_template_predictor(path, allow_code)
    return load_v1_predictor(path, EMBEDDINGS, float8) if family == "v1" else load_query_predictor(path)
