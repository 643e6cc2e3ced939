"""Live application: LoRAs that act on activations, by batch row, by token and by step; weights stay untouched.

    y[r, t] = W x[r, t] + sum_j s_j(row r, token t, sigma) * B_j (A_j x[r, t])

`attach` keeps all live LoRAs of a MODEL in one place, so any number of nodes costs one hook per Linear. The hooks
stand only while a sampler runs, and act only inside the forwards of the patcher that they were attached to. The
weights are never written, so quantised, offloaded and otherwise patched weights are served alike, and there is
nothing to restore.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...base_models import ARCHITECTURES
from ..patch import fitting, weights_of
from .branches import read_conds
from .image_tokens import check_maskable
from .loras import LiveLoRA, LiveSet, check_mask_fits
from .run import SamplingRun, is_compiled

_KEY = "i2l_live"


def attach(model: ModelPatcher, *loras: LiveLoRA) -> ModelPatcher:
    """A clone of `model` on which these LoRAs act live, beside those that were attached before.

    Raises I2LError, before anything is cloned, when one of them does not fit the model.
    """
    if any(live.mask is not None for live in loras):
        check_maskable(model.model.diffusion_model)
    loras = tuple(_fitted(live, model) for live in loras)
    clone = model.clone()
    widths = {name.removesuffix(".weight"): shape[0] for name, shape in weights_of(model).items() if shape}
    engine = LiveEngine(LiveSet.of((*attached(model), *loras), widths))
    for kind, wrapper in engine.wrappers():
        clone.remove_wrappers_with_key(kind, _KEY)
        clone.add_wrapper_with_key(kind, _KEY, wrapper)
    clone.set_attachments(_KEY, engine.live.loras)
    return clone


def attached(model: ModelPatcher) -> tuple[LiveLoRA, ...]:
    """The live LoRAs of a MODEL, in the order in which they were attached."""
    return model.get_attachment(_KEY) or ()


def _fitted(live: LiveLoRA, model: ModelPatcher) -> LiveLoRA:
    if live.fit is not None:
        return live
    fit = fitting(live.lora, model)
    return replace(live, lora=fit.lora, fit=fit)


class LiveEngine:
    """All live LoRAs of one patcher. What belongs to one sampling is in its `SamplingRun`."""

    def __init__(self, live: LiveSet) -> None:
        self.live = live
        self._run: SamplingRun | None = None
        self._told_of_compile = False

    def wrappers(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        return (
            (WrappersMP.OUTER_SAMPLE, self._sample),
            (WrappersMP.PREPARE_SAMPLING, self._prepare),
            (WrappersMP.CALC_COND_BATCH, self._conds),
            (WrappersMP.APPLY_MODEL, self._forward),
        )

    def _sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        for live in self.live.loras:
            check_mask_fits(live.mask, noise)
        if is_compiled(guider.model_patcher) and not self._told_of_compile:
            self._told_of_compile = True
            logging.warning(
                "i2L: this model runs uncompiled while live LoRAs act on it; merged ones do compile"
            )
        outer, self._run = (
            self._run,
            SamplingRun(self.live, read_conds(guider.conds), guider.model_patcher, noise),
        )
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self._run.close()
            self._run = outer

    def _prepare(self, executor: Any, model: ModelPatcher, shape: Any, conds: Any, *args: Any, **kwargs: Any):
        prepared = executor(model, shape, conds, *args, **kwargs)
        # the host made room without knowing of the LoRAs; make more, but not at the cost of what this run uses
        used = [model, *prepared[2]]
        keep = [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model in used]
        needed, _ = comfy.sampler_helpers.estimate_memory(model, shape, conds)
        comfy.model_management.free_memory(needed + self.live.nbytes, model.load_device, keep_loaded=keep)
        return prepared

    def _conds(self, executor: Any, model: BaseModel, conds: list[Any], *args: Any, **kwargs: Any):
        if self._run is not None:
            self._run.begin_cond_batch(conds)
        if not self._must_split(conds):
            return executor(model, conds, *args, **kwargs)
        alone = ([cond if i == k else None for i, cond in enumerate(conds)] for k in range(len(conds)))
        return [executor(model, part, *args, **kwargs)[k] for k, part in enumerate(alone)]

    def _must_split(self, conds: list[Any]) -> bool:
        """HiDream-O1 sees reference pictures once for all rows; a LoRA on its vision layers needs rows apart."""
        shared = tuple(start for one in ARCHITECTURES for start in one.shared_rows)
        if not any(target.weight.startswith(shared) for target in self.live.targets):
            return False
        return any("reference_latents" in entry for cond in conds if cond for entry in cond)

    def _forward(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        model: BaseModel = executor.class_obj
        # (x, t, c_concat, c_crossattn, control, transformer_options)
        options = args[4] if len(args) > 4 else kwargs.get("transformer_options", {})
        run = self._run or SamplingRun(self.live, {}, None, x)
        try:
            return run.forward(model, options, x, kwargs, lambda: executor(x, *args, **kwargs))
        finally:
            if run is not self._run:  # called outside of a sampler
                run.close()
