"""The metrics that DiffSynth-Studio implements (`diffsynth.metrics`), as the paper's authors publish them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...i2l_core.errors import I2LError, first_line
from .clip import quiet
from .rows import Sample

INSTALL = "pip install diffsynth==2.1.12"

_METRICS = {  # figure -> (class in diffsynth.metrics, what it calls the folder of its texts' or pictures' settings)
    "aesthetic": ("AestheticMetric", "processor_config"),
    "image_reward": ("ImageRewardMetric", "tokenizer_config"),
    "hpsv2": ("HPSv2Metric", "processor_config"),
    "hpsv3": ("HPSv3Metric", "processor_config"),
}


class PublishedJudge:
    """(picture, sample) -> the metric's own score of the picture, and of the prompt where the metric reads one."""

    cut = 0  # not told

    def __init__(self, figure: str, metric: Any) -> None:
        self._figure, self._metric = figure, metric
        if figure == "hpsv2":
            _use_gelu(metric)

    def __call__(self, picture: Image.Image, sample: Sample) -> dict[str, float]:
        asked = (picture,) if self._figure == "aesthetic" else (sample.prompt, picture)
        return {self._figure: float(self._metric.compute(*asked)[0])}


def load_published(figure: str, folder: Path, device: torch.device) -> PublishedJudge:
    """Raises I2LError when the package is missing, or the files are not those it knows."""
    name, settings = _METRICS[figure]
    try:
        metrics: Any = importlib.import_module("diffsynth.metrics")
    except ImportError as error:
        raise I2LError(
            f"{figure} needs the package diffsynth ({first_line(error)}): {INSTALL}, best in an "
            "environment of its own; or leave the metric out with --metrics"
        ) from error
    files = {
        "model_config": metrics.ModelConfig(path=str(folder / "model.safetensors")),
        settings: metrics.ModelConfig(path=str(folder)),
    }
    try:
        with quiet(), contextlib.redirect_stdout(sys.stderr):  # it talks; stdout is for the result
            metric = getattr(metrics, name).from_pretrained(**files, device=device.type)
    except Exception as error:  # the library raises anything for files that do not fit
        raise I2LError(
            f"{folder}: diffsynth does not take it as {figure}, so its weights are of another architecture or "
            f"its folder is not whole: {first_line(error)}"
        ) from error
    return PublishedJudge(figure, metric)


def _use_gelu(metric: Any) -> None:
    """HPSv2 as its authors publish it, OpenCLIP's ViT-H-14 with GELU; diffsynth builds it with QuickGELU."""
    found = [module for module in metric.model.model.modules() if hasattr(module, "activation_fn")]
    if not found:
        raise I2LError(f"hpsv2: this transformers and diffsynth do not fit together; {INSTALL}")
    for module in found:
        module.activation_fn = torch.nn.GELU()
