"""The network of a MODEL as it runs: found through torch.compile, by blocks or whole, and run without it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import nn

from .loras import LiveSet


def network_of(model: BaseModel) -> nn.Module:
    """The network of a model, under torch.compile too."""
    return getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)


def layers_of(network: nn.Module, live: LiveSet) -> dict[str, nn.Module]:
    """weight -> its Linear, of those that the network has now."""
    found = {target.weight: submodule(network, target.weight) for target in live.targets}
    return {name: layer for name, layer in found.items() if layer is not None}


def submodule(network: nn.Module, name: str) -> nn.Module | None:
    """By its name, whatever blocks on the way are wrapped by torch.compile."""
    module: Any = network
    for part in name.split("."):
        module = getattr(getattr(module, "_orig_mod", module), part, None)
        if not isinstance(module, nn.Module):
            return None
    return getattr(module, "_orig_mod", module)


def is_compiled(model: ModelPatcher) -> bool:
    """Whether ComfyUI's Torch Compile Model node, or an object patch, has torch.compile run this model."""
    if "torch._dynamo" not in sys.modules:
        return False
    compiled = torch._dynamo.OptimizedModule  # type: ignore[attr-defined]
    wrapped = model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    return bool(wrapped) or any(isinstance(patch, compiled) for patch in model.object_patches.values())


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Hooks come and go, which compiled code does not notice, so it is passed over while they stand."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
