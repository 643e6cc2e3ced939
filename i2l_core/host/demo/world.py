"""The demo world as MODEL, CLIP, VAE and predictor of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import comfy.supported_models
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...demo import files
from ...demo.backbone import BackboneConfig
from ...errors import I2LError
from ...predictors.base import Predictor
from ..predictors.runtime import load_predictor
from .text import build_clip
from .weights import as_model, read


class DemoWorld(NamedTuple):
    """All that a workflow needs, without a download."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    predictor: Predictor


def load_demo(folder: Path = files.WEIGHTS) -> DemoWorld:
    """Read the weights of the demo world. Raises I2LError when they are missing, damaged or do not fit."""
    predictor = load_predictor(folder / files.PREDICTOR)
    return DemoWorld(load_model(folder), load_clip(folder), load_vae(folder), predictor)


def load_clip(folder: Path) -> comfy.sd.CLIP:
    clip = build_clip(_text_weights(folder))
    clip.patcher.cached_patcher_init = (load_text_patcher, (folder,))
    return clip


def load_model(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The backbone as a MODEL of the Z-Image class; the host chooses dtype and devices."""
    tensors, about = read(folder / files.BACKBONE)
    config = comfy.supported_models.ZImage(_backbone_config(about).host_config())
    patcher = as_model(config, files.part(tensors, "backbone."), files.BACKBONE, disable_dynamic)
    patcher.cached_patcher_init = (load_model, (folder,))  # for hooks and several GPUs
    return patcher


def load_text_patcher(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return build_clip(_text_weights(folder), disable_dynamic).patcher


def load_vae(folder: Path) -> comfy.sd.VAE:
    """The autoencoder as a VAE: the host takes it for a taef1 pair, 16 channels at 1/8."""
    tensors, _ = read(folder / files.VAE)
    vae = comfy.sd.VAE(sd=tensors)
    expected = set() if vae.first_stage_model is None else vae.first_stage_model.state_dict().keys()
    if tensors.keys() != expected:  # the host only logs it
        raise I2LError(f"{files.VAE} is not the demo model's autoencoder; install ComfyUI-i2L again")
    vae.patcher.cached_patcher_init = (load_vae_patcher, (folder,))
    return vae


def load_vae_patcher(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """As the host's own function of this name: it has no VAE without dynamic loading."""
    return load_vae(folder).patcher


def _backbone_config(about: dict[str, Any]) -> BackboneConfig:
    sizes = about.get("config")
    if not isinstance(sizes, dict):
        raise I2LError(f"{files.BACKBONE} does not say its sizes; install ComfyUI-i2L again")
    return BackboneConfig(**{**sizes, "axes_dims": tuple(sizes["axes_dims"])})


def _text_weights(folder: Path) -> dict[str, Tensor]:
    tensors, _ = read(folder / files.BACKBONE)
    return files.part(tensors, "text.")
