"""Merged application: a LoRA as weight patches on a cloned MODEL, which cost nothing per step.

Layers on rows of a fused weight go to the host as they are, with an offset. One layer of the whole weight
(`lora.to_whole_weights`) gives the same sum, but multiplies the zeros of the block-placed B as well: three times the
work and a dense change of the full width at once for q, k and v.

The host skips what it cannot place, and only logs a wrong shape; so everything is checked before the clone.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.lora import LoRAAdapter
from torch import nn

from ..base_models import ARCHITECTURES, Architecture, BaseModel, Weights, find_model, recognise
from ..checks import check_strength, listed
from ..errors import I2LError
from ..lora import LoRA, Target
from .prefix_cache import clear_around_runs

_PREFIX = "diffusion_model."
_PLAIN_TENSORS = (
    torch.Tensor,
    nn.Parameter,
)  # not the classes of quantised tensors, which know what they stand for

PatchKey = str | tuple[str, tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class Fit:
    """A LoRA as it fits one MODEL: compared with its weights once, on the way to patches or hooks.

    `lora`: the layers that the MODEL has. `missing`: each of the others with the reason. What the LoRA's file has for
    other networks is in `lora.left_out`.
    """

    lora: LoRA
    missing: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        """Layers of the LoRA that came in."""
        return self.lora.n_layers + len(self.missing)

    def __str__(self) -> str:
        """One line for a node: "238 of 238 LoRA layers on 170 weights: layers 210, noise_refiner 14, ..."."""
        return _counted(tuple(self.lora.layers), self.n_layers) + left_out_text(self.lora.left_out)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """What a node adds to its line for what is not of the diffusion model, or nothing."""
    what = ", ".join(f"{what} ({count})" for what, count in left_out.items())
    return f"; left out: {what}" if what else ""


def weights_of(model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Parameter name in the diffusion model -> shape. Of a quantised or packed weight, the one it stands for.

    And the buffers with names like `__ming_image__`, by which the host marks a model.
    """
    network = model.model.diffusion_model
    marks = [
        (name, mark) for name, mark in network.named_buffers() if name.rpartition(".")[2].startswith("__")
    ]
    tensors = *network.named_parameters(), *marks
    shapes = {_plain(name): tuple(tensor.shape) for name, tensor in tensors}
    packed = {f"{name}.weight": shape for name, shape in _packed(network).items() if shape is not None}
    return shapes | packed


def _plain(name: str) -> str:
    """The name of a weight or layer without what torch.compile adds to compiled blocks."""
    return name.replace("_orig_mod.", "")


def _packed(network: nn.Module) -> dict[str, tuple[int, int] | None]:
    """Layer -> (d_out, d_in) where they are told, of layers whose weights are not matrices of numbers.

    Several to a byte, in formats that a node's own kernels read (4 bit, nunchaku, bitsandbytes), or whole numbers
    without a way to write them back.
    """
    found = {}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        size = getattr(module, "out_features", None), getattr(module, "in_features", None)
        sized = isinstance(size[0], int) and isinstance(size[1], int)
        if torch.is_tensor(weight) and (not sized or tuple(weight.shape) == size):
            unpacked = type(weight) not in _PLAIN_TENSORS or weight.is_floating_point()
            packed = not unpacked and not hasattr(module, "set_weight")
        else:
            own = [*module._parameters.values(), *module._buffers.values()]
            packed = torch.is_tensor(weight) or any(
                tensor is not None and tensor.ndim > 1 and not tensor.is_floating_point() for tensor in own
            )
        if packed:
            found[_plain(name)] = size if sized else None
    return found


def base_model_of(model: ModelPatcher) -> BaseModel:
    """Which base model a MODEL is. Raises I2LError listing the known ones."""
    return recognise(weights_of(model))


def architecture_of(model: ModelPatcher) -> Architecture | None:
    """The table of a MODEL's class, whatever its sizes; None for a class that is not known."""
    weights = weights_of(model)
    return next((architecture for architecture in ARCHITECTURES if architecture.matches(weights)), None)


def fitting(lora: LoRA, model: ModelPatcher, partial: bool = False, cure: str = "") -> Fit:
    """The LoRA as it fits the model: with `partial` that part of it that does. Changes nothing.

    A LoRA without a base model is taken for this one. `cure`: what the node at hand offers where a part does not fit.
    Raises I2LError when it is for another base model (naming both), when none of its layers fits the model, when
    not all of them do (naming up to five) and `partial` is off, or when a number in it is not finite.
    """
    weights = weights_of(model)
    if lora.base_model:
        _check_base_model(lora, weights)
    landed, missing = [], []
    for target, layer in sorted(lora.layers.items()):
        problem = misfit(
            str(target), (layer.d_out, layer.d_in), weights.get(f"{target.weight}.weight"), target.rows
        )
        if problem:
            missing.append(problem)
        else:
            landed.append(target)
    if missing and not (partial and landed):
        if packed := _packed(model.model.diffusion_model):
            cure = (
                f"this MODEL has packed weights ({len(packed)} layers, for kernels of their own), so its layers may "
                "have other names or sizes than the LoRA's: load it in a format that ComfyUI itself reads"
            )
        cure = f"; {cure if cure and (landed or packed) else 'use a LoRA that was made for this model'}"
        where = _counted(landed, lora.n_layers)
        raise I2LError(f"the LoRA does not fit this MODEL, {where}. Not placed: {listed(missing)}{cure}")
    lora.check_finite()
    return Fit(lora.only(landed), tuple(missing)) if missing else Fit(lora)


def misfit(
    name: str,
    size: tuple[int, ...],
    shape: tuple[int, ...] | None,
    rows: tuple[int, int] | None = None,
) -> str:
    """Why a layer of `size` cannot go to a weight of `shape`, or to its `rows` (start, length); "" when it can."""
    if shape is None:
        return f"{name} (the model has no such weight)"
    start, length = rows or (0, shape[0])
    if start + length <= shape[0] and size == (length, *shape[1:]):
        return ""
    return f"{name} (layer {'x'.join(map(str, size))}, weight {'x'.join(map(str, shape))})"


def apply_merged(model: ModelPatcher, lora: LoRA | Fit, strength: float) -> ModelPatcher:
    """A clone of `model` with W' = W + strength * up @ down; `model` stays as it is.

    Raises I2LError, before anything is cloned, when the LoRA does not fit (`fitting`) or when the strength is not
    finite.
    """
    fit = lora if isinstance(lora, Fit) else fitting(lora, model)
    patches = {
        _key(target): LoRAAdapter(set(), (layer.up.detach(), layer.down.detach(), None, None, None, None))
        for target, layer in fit.lora.layers.items()
    }
    return with_patches(model, patches, strength)


def check_unpacked(model: ModelPatcher, patches: Iterable[PatchKey]) -> None:
    """Raise I2LError when any of these patches is for a weight that ComfyUI cannot write."""
    if packed := _packed_weights(model, patches):
        raise I2LError(
            f"the MODEL has packed weights, {listed(sorted(packed))}, into which a LoRA cannot be merged: set mode to "
            "auto, or load the model in a format that ComfyUI itself reads"
        )


def can_merge(model: ModelPatcher, fit: Fit) -> bool:
    """Whether ComfyUI can write every weight that the LoRA changes."""
    return not _packed_weights(model, map(_key, fit.lora.layers))


def _packed_weights(model: ModelPatcher, patches: Iterable[PatchKey]) -> set[str]:
    weights = {key if isinstance(key, str) else key[0] for key in patches}
    return weights & {f"{_PREFIX}{name}.weight" for name in _packed(model.model.diffusion_model)}


def with_patches(model: ModelPatcher, patches: Mapping[PatchKey, Any], strength: float) -> ModelPatcher:
    """A clone of `model` with these patches on its weights; at strength 0 with none.

    Raises I2LError when the strength is not finite, or when the host refuses a patch.
    """
    check_strength(strength)
    check_unpacked(model, patches)
    network = model.model.diffusion_model
    patched = model.clone()
    clear_around_runs(patched)
    if strength == 0:
        return patched
    compiled = {
        f"{_PREFIX}{_plain(name)}": f"{_PREFIX}{name}"
        for name, _ in network.named_parameters()
        if _plain(name) != name
    }
    named = {_renamed(key, compiled): patch for key, patch in patches.items()}
    refused = named.keys() - set(patched.add_patches(named, strength))
    if refused:
        raise I2LError(
            f"ComfyUI refused {len(refused)} of {len(patches)} LoRA layers: {listed(map(str, refused))}"
        )
    for name, other in compiled.items():  # blocks that are compiled now may not be when the model is loaded
        if other in patched.patches:
            patched.patches[name] = patched.patches[other]
    return patched


def _renamed(key: PatchKey, names: Mapping[str, str]) -> PatchKey:
    return names.get(key, key) if isinstance(key, str) else (names.get(key[0], key[0]), key[1])


def _check_base_model(lora: LoRA, weights: Weights) -> None:
    """Refuse a LoRA for another base model. One of its own class in sizes that are not listed may take it.

    A layer-pruned model is such a one; whether the layers fit it is compared afterwards.
    """
    wanted = find_model(lora.base_model)
    title = f"{wanted.title} ({wanted.id})" if wanted else lora.base_model
    try:
        base = recognise(weights)
    except I2LError as error:
        if wanted is not None and wanted.architecture.matches(weights):
            return
        raise I2LError(f"the LoRA is for {title}, but {error}") from error
    if base.id != lora.base_model:
        raise I2LError(
            f"the LoRA is for {title}, but the MODEL is {base.title} ({base.id}); "
            "load the model that it is for, or predict with a predictor for this one"
        )


def _counted(targets: Sequence[Target], total: int) -> str:
    groups = collections.Counter(target.weight.split(".")[0] for target in targets)
    weights = len({target.weight for target in targets})
    where = ", ".join(f"{group} {count}" for group, count in groups.items())
    return f"{len(targets)} of {total} LoRA layers on {weights} weights" + (f": {where}" if where else "")


def _key(target: Target) -> PatchKey:
    """What ComfyUI calls a target: a key, or a key and (dim, start, length)."""
    key = f"{_PREFIX}{target.weight}.weight"
    return key if target.rows is None else (key, (0, *target.rows))
