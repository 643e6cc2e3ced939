"""The demo world's Infinity in the host, with the CLIP of the demo's diffusion model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...demo import files
from ...demo.infinity import CODER, SCALES, TRANSFORMER
from ...errors import I2LError
from ...infinity.files import check_transformer
from ..infinity.model import InfinityModel, model_of
from ..infinity.read import shapes_of
from ..infinity.vae import InfinityVAE
from .weights import read
from .world import load_clip


class InfinityDemo(NamedTuple):
    """All that a workflow with Infinity needs, without a download."""

    model: InfinityModel
    clip: comfy.sd.CLIP
    vae: InfinityVAE


def load_infinity_demo(folder: Path = files.WEIGHTS) -> InfinityDemo:
    """Read the weights of the demo's Infinity. Raises I2LError when they are missing, damaged or do not fit."""
    return InfinityDemo(load_infinity(folder), load_clip(folder), load_infinity_vae(folder))


def load_infinity(folder: Path, disable_dynamic: bool = False) -> InfinityModel:
    weights, _ = read(folder / files.INFINITY)
    try:
        config = check_transformer(shapes_of(weights), patchify=False)
    except I2LError as error:
        raise I2LError(f"{files.INFINITY} is not the demo model's: {error}") from error
    if config != TRANSFORMER:
        raise I2LError(f"{files.INFINITY} is of another size; install ComfyUI-i2L again")
    # In the file large matrices have 8 bits, to be small; here they are computed with at once
    wide = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    model = model_of(wide, config, "the demo's Infinity", disable_dynamic=disable_dynamic)
    model.patcher.cached_patcher_init = (_load_patcher, (folder,))  # for several GPUs
    return replace(model, scales=SCALES)


def load_infinity_vae(folder: Path) -> InfinityVAE:
    weights, _ = read(folder / files.INFINITY_VAE)
    try:
        vae = InfinityVAE(CODER, weights)
    except RuntimeError as error:  # torch says which tensors
        raise I2LError(
            f"{files.INFINITY_VAE} is not the demo model's: {str(error).splitlines()[-1].strip()}; "
            "install ComfyUI-i2L again"
        ) from error
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (folder,))
    return vae


def _load_patcher(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return load_infinity(folder, disable_dynamic).patcher


def _load_vae_patcher(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return load_infinity_vae(folder).patcher
