"""The demo world's FLUX.2 as a MODEL of the host: its Flux class, fed by the demo's own CLIP and VAE."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_base
import comfy.sd
import comfy.supported_models
from comfy.model_patcher import ModelPatcher

from ...demo import files
from ...demo.flux2 import Flux2Config
from ...demo.sampler import SHIFT
from ...errors import I2LError
from ...predictors.base import Predictor
from ...predictors.published import Value
from ...predictors.query.config import QueryConfig
from ...predictors.query.file import LoadedPredictor, load_predictor
from ...predictors.query.network import QueryNetwork
from ...predictors.query.predictor import hold
from ..predictors.runtime import comfy_runtime
from ..templates.base import Template
from ..templates.native import native_template
from .weights import as_model, read
from .world import load_clip, load_vae

_ID = "i2l-tiny-flux2"  # in base_models/demo.py
_BRIGHTNESS = Value("scale", 0.0, 0.5, 1.0, 1000.0)


class _TinyFlux2(comfy.supported_models.Flux2):
    """As FLUX.2, but for the demo's latents and text: 16 channels at 1/8, and prompts that are not padded to 512."""

    sampling_settings = {"shift": math.log(SHIFT)}
    latent_format = comfy.latent_formats.Flux

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> comfy.model_base.Flux:
        return comfy.model_base.Flux(self, device=device)


def load_flux2(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The host chooses dtype and devices. Raises I2LError when the file is missing, damaged or does not fit."""
    weights, about = read(folder / files.FLUX2)
    config = _TinyFlux2(_config(about).host_config())
    patcher = as_model(config, weights, files.FLUX2, disable_dynamic)
    patcher.cached_patcher_init = (load_flux2, (folder,))  # for hooks and several GPUs
    return patcher


def load_flux2_predictor(folder: Path) -> Predictor:
    """Its predictor, which looks through the encoder of the other one. Raises I2LError as `load_flux2` does."""
    tensors, about = read(folder / files.FLUX2_PREDICTOR)
    runtime = comfy_runtime()
    other = load_predictor(folder / files.PREDICTOR)
    try:
        network = QueryNetwork(
            QueryConfig.from_json(about.get("predictor")), device="meta", operations=runtime.operations
        )
        network.load_state_dict(tensors, strict=True, assign=True)
    except (I2LError, RuntimeError) as error:
        raise I2LError(
            f"{files.FLUX2_PREDICTOR} is not the demo model's; install ComfyUI-i2L again"
        ) from error
    meta = {"base_model": {"id": _ID}, "about": {"steps": str(about.get("steps"))}}
    name = Path(files.FLUX2_PREDICTOR).stem
    return hold(LoadedPredictor(network.config, network.eval(), other.encoder, meta, name), runtime)


class Flux2Demo(NamedTuple):
    """All that a workflow with templates needs, without a download."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    predictor: Predictor
    structure: Template
    brightness: Template


def load_flux2_demo(folder: Path = files.WEIGHTS) -> Flux2Demo:
    """Read the weights of the demo's FLUX.2 and its templates. Raises I2LError when they are missing or damaged."""
    return Flux2Demo(
        load_flux2(folder),
        load_clip(folder),
        load_vae(folder),
        load_flux2_predictor(folder),
        _template(folder / files.STRUCTURE, "demo structure"),
        _template(folder / files.BRIGHTNESS, "demo brightness", _BRIGHTNESS),
    )


def _template(path: Path, title: str, value: Value | None = None) -> Template:
    if not path.is_file():
        raise I2LError(f"the demo model lacks {path.name}: install ComfyUI-i2L again, with its weights")
    found = native_template(path, title, _ID, value)
    if found is None:
        raise I2LError(f"{path.name} is not the demo model's template; install ComfyUI-i2L again")
    return found


def _config(about: dict[str, Any]) -> Flux2Config:
    sizes = about.get("config")
    if not isinstance(sizes, dict):
        raise I2LError(f"{files.FLUX2} does not say its sizes; install ComfyUI-i2L again")
    return Flux2Config(**sizes)
