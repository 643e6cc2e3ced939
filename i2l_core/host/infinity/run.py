"""One drawing with Infinity in the host: memory reserved, progress, previews, cancelled between blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from ...errors import I2LError
from ...infinity.coder import PREVIEW_PLACES
from ...infinity.config import InfinityConfig
from ...infinity.paths import (
    Drawing,
    Sampling,
    Step,
    Styling,
    draw,
    extent_of,
    feature_of_words,
    per_scale,
    run_nbytes,
)
from ...infinity.scales import Scales
from .model import InfinityModel
from .vae import InfinityVAE, nbytes

T = TypeVar("T")

UNITS = 1000  # of a progress bar
_PREVIEW_PIXELS = 512  # pixels a side


@dataclass(frozen=True)
class Drawn:
    """Sums of codes (rows, bits, H, W) float32, as a LATENT of InfinityVAE: the picture, in its style if it has one;
    and the same without it, None where that was not drawn to its end."""

    picture: Tensor
    content: Tensor | None


def run(
    model: InfinityModel,
    drawing: Drawing,
    sampling: Sampling,
    styling: Styling | None = None,
    preview: InfinityVAE | None = None,
) -> Drawn:
    """Draw. `preview`: shows the picture after each scale but the last.

    Raises I2LError for settings that do not fit, a VAE of another model, and too little memory; whatever the host
    raises when the run is cancelled. Nothing of it is in memory afterwards.
    """
    if preview is not None:
        model.config.check_coder(preview.config.bits)
    drawing = _on(model.patcher.load_device, drawing)
    bar = _Bar(model.config, drawing.scales, sampling, styling)

    def action() -> Drawn:
        step: Step | None = None
        for step in draw(model.network, drawing, sampling, styling, model.dtype, bar.after_block):
            if preview is not None and step.index + 1 < len(drawing.scales.maps):
                bar.show(preview, _shown(step), max(drawing.scales.cells(model.config.patchify)[step.index]))
        assert step is not None
        content = None if styling is None or step.content is None else _latent(step.content)
        return Drawn(_latent(_shown(step)), content)

    return _in_memory(model, drawing, sampling, styling, preview, action)


def words_feature(model: InfinityModel, drawing: Drawing, sampling: Sampling, step: int) -> Tensor:
    """The feature of a style's words after `step` scales (paths.feature_of_words), under the same rules as `run`."""
    drawing = _on(model.patcher.load_device, drawing)

    def action() -> Tensor:
        return feature_of_words(model.network, drawing, sampling, step, model.dtype, _check_cancelled)

    return _in_memory(model, drawing, sampling, None, None, action)


def scale_costs(
    config: InfinityConfig, scales: Scales, sampling: Sampling, styling: Styling | None
) -> list[float]:
    """Floating point operations of a block at each scale, of one picture: its layers, and attention to all so far."""
    ends = extent_of(scales, 1, styling).ends
    guidance = per_scale("guidance", sampling.guidance, len(scales.maps))
    layers = 12 * config.width**2 + 4 * config.width * config.hidden
    costs, seen = [], 0
    for index, count in enumerate(scales.counts):
        seen += count
        one = styling is not None and styling.shared and index < styling.settings.step
        paths = 1 if one else sum(index < end for end in ends)
        sides = 1 + any(g != 1 for g in guidance[index:])
        costs.append(float(paths * sides * count * (layers + 4 * config.width * seen)))
    return costs


class _Bar:
    def __init__(
        self, config: InfinityConfig, scales: Scales, sampling: Sampling, styling: Styling | None
    ) -> None:
        self._depth = config.depth
        self._costs = scale_costs(config, scales, sampling, styling)
        self._bar = ProgressBar(UNITS)
        self._done = 0

    def after_block(self, index: int, block: int) -> None:
        _check_cancelled(index, block)
        spent = sum(self._costs[:index]) + self._costs[index] * (block + 1) / self._depth
        self._done = round(UNITS * spent / sum(self._costs))
        self._bar.update_absolute(self._done)

    def show(self, vae: InfinityVAE, latent: Tensor, drawn: int) -> None:
        picture = vae.coder.preview(latent[:1].to(vae.device), drawn)[0].float()
        pixels = ((picture + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8).movedim(0, -1)
        image = Image.fromarray(pixels.contiguous().numpy())
        self._bar.update_absolute(self._done, UNITS, ("JPEG", image, _PREVIEW_PIXELS))


def _check_cancelled(index: int, block: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def _in_memory(
    model: InfinityModel,
    drawing: Drawing,
    sampling: Sampling,
    styling: Styling | None,
    preview: InfinityVAE | None,
    action: Callable[[], T],
) -> T:
    needed = run_nbytes(model.config, drawing, sampling, styling, model.dtype.itemsize)
    models = model.get_models()
    if preview is not None:
        models.append(preview.patcher)
        side = PREVIEW_PLACES[1] * preview.config.cell
        needed += nbytes(preview.config, side, side)
    try:
        comfy.model_management.load_models_gpu(models, memory_required=needed)
        return action()
    except comfy.model_management.OOM_EXCEPTION:
        pass  # its frames hold what filled the memory: what follows runs without them
    for held in models:
        comfy.model_management.unload_model_and_clones(held)
    comfy.model_management.soft_empty_cache()
    raise I2LError(
        f"{model.name}: there is not enough memory to draw {drawing.rows} x {drawing.scales.pixels[1]} x "
        f"{drawing.scales.pixels[0]} pixels, which needs {needed / 2**30:.1f} GiB beside the weights; choose a smaller "
        "size or batch, let the structure end earlier, or set the guidance of the last scales to 1"
    )


def _on(device: torch.device, drawing: Drawing) -> Drawing:
    """Texts on the device, one tensor for each that is one."""
    moved: dict[int, Tensor] = {}

    def on(text: Tensor) -> Tensor:
        return moved.setdefault(id(text), text.to(device))

    negatives = None if drawing.negatives is None else [on(text) for text in drawing.negatives]
    return replace(drawing, texts=[on(text) for text in drawing.texts], negatives=negatives)


def _shown(step: Step) -> Tensor:
    found = step.content if step.styled is None else step.styled
    assert found is not None
    return found


def _latent(found: Tensor) -> Tensor:
    return found.to(comfy.model_management.intermediate_device())
