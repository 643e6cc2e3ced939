"""Merged application: a LoRA as weight patches on a cloned MODEL, which cost nothing per step.

Layers on rows of a fused weight go to the host as they are, with an offset. One layer of the whole weight
(`lora.to_whole_weights`) gives the same sum, but multiplies the zeros of the block-placed B as well: three times the
work and a dense change of the full width at once for q, k and v.

The host skips what it cannot place, and only logs a wrong shape; so everything is checked before the clone.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.lora import LoRAAdapter

from ..base_models import ARCHITECTURES, Architecture, BaseModel, Weights, find_model, recognise
from ..checks import check_strength, listed
from ..errors import I2LError
from ..lora import LoRA, Target
from .prefix_cache import clear_around_runs

_PREFIX = "diffusion_model."

PatchKey = str | tuple[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Report:
    """Where the layers of a LoRA land on a MODEL. `wrong` says why a layer cannot; empty: all of them do."""

    landed: tuple[Target, ...]
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for a log: "238 of 238 LoRA layers on 170 weights: layers 210, noise_refiner 14, ..."."""
        groups = collections.Counter(target.weight.split(".")[0] for target in self.landed)
        total = len(self.landed) + len(self.wrong)
        weights = len({target.weight for target in self.landed})
        where = ", ".join(f"{group} {count}" for group, count in groups.items())
        return f"{len(self.landed)} of {total} LoRA layers on {weights} weights" + (
            f": {where}" if where else ""
        )


def weights_of(model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Parameter name in the diffusion model -> shape. Of a quantised weight, the shape that it stands for."""
    return {name: tuple(weight.shape) for name, weight in model.model.diffusion_model.named_parameters()}


def base_model_of(model: ModelPatcher) -> BaseModel:
    """Which base model a MODEL is. Raises I2LError listing the known ones."""
    return recognise(weights_of(model))


def architecture_of(model: ModelPatcher) -> Architecture | None:
    """The table of a MODEL's class, whatever its sizes; None for a class that is not known."""
    weights = weights_of(model)
    return next((architecture for architecture in ARCHITECTURES if architecture.matches(weights)), None)


def report(lora: LoRA, model: ModelPatcher) -> Report:
    """Where each layer lands. Changes nothing and raises nothing."""
    return _report(lora, weights_of(model))


def check_fits(lora: LoRA, model: ModelPatcher, partial: bool = False) -> LoRA:
    """The LoRA, or with `partial` that part of it that fits the model.

    A LoRA without a base model is taken for this one.
    Raises I2LError when it is for another base model (naming both), when none of its layers fits the model, when
    not all of them do (naming up to five) and `partial` is off, or when a number in it is not finite.
    """
    weights = weights_of(model)
    if lora.base_model:
        _check_base_model(lora, weights)
    found = _report(lora, weights)
    if found.wrong and not (partial and found.landed):
        cure = "" if not found.landed else "; apply the part that fits by setting missing_layers to skip"
        raise I2LError(f"the LoRA does not fit this MODEL, {found}. Not placed: {listed(found.wrong)}{cure}")
    lora.check_finite()
    return lora.only(found.landed) if found.wrong else lora


def apply_merged(model: ModelPatcher, lora: LoRA, strength: float, partial: bool = False) -> ModelPatcher:
    """A clone of `model` with W' = W + strength * up @ down; `model` stays as it is.

    Raises I2LError, before anything is cloned, when the LoRA does not fit (`check_fits`) or when the strength is
    not finite.
    """
    fitting = check_fits(lora, model, partial)
    patches = {
        _key(target): LoRAAdapter(set(), (layer.up.detach(), layer.down.detach(), None, None, None, None))
        for target, layer in fitting.layers.items()
    }
    return with_patches(model, patches, strength)


def with_patches(model: ModelPatcher, patches: Mapping[PatchKey, Any], strength: float) -> ModelPatcher:
    """A clone of `model` with these patches on its weights; at strength 0 with none.

    Raises I2LError when the strength is not finite, or when the host refuses a patch.
    """
    check_strength(strength)
    patched = model.clone()
    clear_around_runs(patched)
    if strength == 0:
        return patched
    refused = patches.keys() - set(patched.add_patches(dict(patches), strength))
    if refused:
        raise I2LError(
            f"ComfyUI refused {len(refused)} of {len(patches)} LoRA layers: {listed(map(str, refused))}"
        )
    return patched


def _check_base_model(lora: LoRA, weights: Weights) -> None:
    wanted = find_model(lora.base_model)
    title = f"{wanted.title} ({wanted.id})" if wanted else lora.base_model
    try:
        base = recognise(weights)
    except I2LError as error:
        raise I2LError(f"the LoRA is for {title}, but {error}") from error
    if base.id != lora.base_model:
        raise I2LError(
            f"the LoRA is for {title}, but the MODEL is {base.title} ({base.id}); "
            "load the model that it is for, or predict with a predictor for this one"
        )


def _report(lora: LoRA, weights: Weights) -> Report:
    landed, wrong = [], []
    for target, layer in sorted(lora.layers.items()):
        problem = _problem(target, (layer.d_out, layer.d_in), weights.get(f"{target.weight}.weight"))
        if problem:
            wrong.append(problem)
        else:
            landed.append(target)
    return Report(tuple(landed), tuple(wrong))


def _problem(target: Target, size: tuple[int, int], shape: tuple[int, ...] | None) -> str:
    """Why a layer of `size` (d_out, d_in) cannot go to its target in a weight of `shape`, or nothing."""
    if shape is None:
        return f"{target} (the model has no such weight)"
    start, length = target.rows or (0, shape[0])
    if len(shape) != 2 or start + length > shape[0] or size != (length, shape[1]):
        expected = "x".join(str(side) for side in shape)
        return f"{target} (layer {size[0]}x{size[1]}, weight {expected})"
    return ""


def _key(target: Target) -> PatchKey:
    """What ComfyUI calls a target: a key, or a key and (dim, start, length)."""
    key = f"{_PREFIX}{target.weight}.weight"
    return key if target.rows is None else (key, (0, *target.rows))
