"""Whatever a LORA_MODEL socket brings, applied to a MODEL: our own predictions, and the LoRAs of core nodes.

Plain LoRAs for the models that we know are read by our own tables, which know more names than the host's. Other
kinds (LoKr, DoRA, full differences) and other models are left to the host. It skips what it cannot place, and
only logs a wrong shape: here both are errors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import comfy.lora_convert
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ..checks import listed
from ..errors import I2LError
from ..lora_files.keys import left_out, not_of_the_model
from ..lora_files.tensors import OtherKind
from ..schedule import ALWAYS, Schedule
from .live.engine import attach
from .live.loras import LiveLoRA
from .lora_model import PredictedLoRA, lora_of
from .patch import (
    Fit,
    apply_merged,
    architecture_of,
    can_merge,
    check_unpacked,
    fitting,
    left_out_text,
    misfit,
    with_patches,
)

AUTO, MERGED, LIVE = "auto", "merged", "live"
_SKIP_CURE = "apply the part that fits by setting missing_layers to skip"


@dataclass(frozen=True, eq=False)
class Applied:
    """What was done with a LORA_MODEL; the node's line (`str`) and its card are rendered from it.

    `fit`: where its layers are, or None for a kind that only the host reads, of `n_layers` layers.
    `neutral`: it was predicted from gray pictures. `left_out`: tensors for other networks that the host has not read.
    """

    fit: Fit | None
    n_layers: int
    mode: str
    strength: float
    neutral: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.fit is None:
            return f"{self.n_layers} LoRA layers, all of them placed{left_out_text(self.left_out)}"
        return f"live: {self.fit}" if self.mode == LIVE else str(self.fit)


def apply_lora_model(
    model: ModelPatcher,
    value: Any,
    strength: float,
    mode: str = AUTO,
    schedule: Schedule = ALWAYS,
    mask: Tensor | None = None,
    partial: bool = False,
) -> tuple[ModelPatcher, Applied]:
    """(a clone of `model` with the LoRA, where its layers are); `model` stays as it is.

    `mode`: AUTO is LIVE where `schedule`, `mask` (N, H, W) or packed weights need it, else MERGED.
    `partial`: layers that the model lacks are left out and counted.
    Raises I2LError, before anything is cloned, for a LoRA that does not fit the model whole (with `partial`: not
    at all).
    """
    if mode not in (AUTO, MERGED, LIVE):
        raise I2LError(f"mode must be {AUTO}, {MERGED} or {LIVE}, got {mode}")
    everywhere = schedule.is_constant and mask is None
    if mode == MERGED and not everywhere:
        raise I2LError(
            "start, end, curve and mask need the mode live; set mode to auto, or start 0, end 1, no curve and "
            "no mask"
        )
    if automatic := mode == AUTO:
        mode = MERGED if everywhere else LIVE
    architecture = architecture_of(model)
    ours = isinstance(value, PredictedLoRA) and value.lora.base_model != ""
    if mode == MERGED and architecture is None and not ours:
        return _apply_by_host(model, value, strength)
    try:
        lora = lora_of(value, architecture)
    except OtherKind:
        if mode == MERGED:
            return _apply_by_host(model, value, strength)
        raise
    fit = fitting(lora, model, partial, _SKIP_CURE)
    if automatic and not can_merge(model, fit):
        mode = LIVE
    applied = Applied(fit, fit.n_layers, mode, strength, getattr(value, "neutral", False))
    logging.info("i2L: %s", applied)
    if mode == MERGED:
        return apply_merged(model, fit, strength), applied
    live = LiveLoRA(fit.lora, strength, mask=mask, schedule=schedule, fit=fit)
    return attach(model, live), applied


class _Recorder(dict[str, Tensor]):
    """A dict that remembers which of its values were read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default


def _apply_by_host(model: ModelPatcher, tensors: Any, strength: float) -> tuple[ModelPatcher, Applied]:
    if not isinstance(tensors, Mapping):
        raise I2LError(f"lora: expected a LORA_MODEL, a dict of tensors, got {type(tensors).__name__}")
    elsewhere = tensors.lora.left_out if isinstance(tensors, PredictedLoRA) else left_out(tensors)
    # torch only converts 8 bit floats; bfloat16 holds each of their values
    tensors = {
        key: tensor.bfloat16() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor
        for key, tensor in tensors.items()
        if not not_of_the_model(key)
    }
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    recorder = _Recorder(comfy.lora_convert.convert_lora(tensors))
    patches = comfy.lora.load_lora(recorder, names, log_missing=False)
    unread = sorted(recorder.keys() - recorder.read)
    if unread or not patches:
        raise I2LError(
            f"the LoRA does not fit this MODEL: {len(unread)} of its {len(recorder)} tensors match no weight "
            f"({listed(unread) or 'it is empty'}); use a LoRA that was made for this model"
        )
    broken = [name for name, tensor in recorder.items() if not tensor.isfinite().all()]
    if broken:
        raise I2LError(f"the LoRA holds NaN or infinite values in {listed(broken)}; train or export it again")
    check_unpacked(model, patches)
    weights = model.model.state_dict()
    wrong = [problem for key, patch in patches.items() if (problem := _problem(key, patch, weights))]
    if wrong:
        raise I2LError(f"the LoRA does not fit this MODEL: {listed(wrong)}; use one made for this model")

    return with_patches(model, patches, strength), Applied(
        None, len(patches), MERGED, strength, left_out=elsewhere
    )


def _problem(key: Any, patch: Any, weights: Mapping[str, Tensor]) -> str:
    """Why a patch cannot go to its weight, or nothing. Only kinds whose size can be told are checked."""
    name, offset = (key, None) if isinstance(key, str) else (key[0], key[1])
    if name not in weights:
        return misfit(name, (), None)
    shape = list(weights[name].shape)
    if offset is not None:
        dim, _, length = offset
        shape[dim] = length
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, _, reshape = patch.weights
        if mid is not None or reshape is not None:
            return ""
        if up.flatten(1).shape[1] != down.shape[0]:
            return f"{name} (down of rank {down.shape[0]}, up of rank {up.flatten(1).shape[1]})"
        # the host multiplies matrices and gives the product the shape of the weight
        return misfit(name, (up.shape[0], down[0].numel()), (shape[0], math.prod(shape[1:])))
    return (
        "" if isinstance(patch, WeightAdapterBase) else misfit(name, tuple(patch[1][0].shape), tuple(shape))
    )
