"""Read the demo world's weights, and build networks of the host from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE
from safetensors import SafetensorError
from torch import Tensor

from ...demo import files
from ...demo.autoencoder import CHANNELS, COLOUR_BIAS, COLOURS
from ...errors import I2LError


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a file and what it says of itself. Raises I2LError when it is missing or damaged."""
    try:
        return files.read(path)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, I2LError):
            raise
        raise I2LError(
            f"{path.name} of the demo model is damaged ({error}); install ComfyUI-i2L again"
        ) from error


def as_model(config: BASE, weights: dict[str, Tensor], name: str, disable_dynamic: bool) -> ModelPatcher:
    """A diffusion model as a MODEL; the host chooses dtype and devices. `name`: of the file, for the I2LError that
    is raised when the weights do not fit."""
    device = comfy.model_management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    dtype = comfy.model_management.unet_dtype(
        model_params=sum(tensor.numel() for tensor in weights.values()),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model({}, "")
    rest = [[0.0] * 3] * (CHANNELS - len(COLOURS))
    model.latent_format.latent_rgb_factors = [*map(list, COLOURS), *rest]
    model.latent_format.latent_rgb_factors_bias = list(COLOUR_BIAS)

    # looked up now: ComfyUI chooses the class of patcher when it starts
    patchers = comfy.model_patcher
    kind = patchers.ModelPatcher if disable_dynamic else patchers.CoreModelPatcher
    offload = comfy.model_management.unet_offload_device()
    patcher = kind(model, load_device=device, offload_device=offload)
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    try:
        model.diffusion_model.load_state_dict(weights, strict=True, assign=patcher.is_dynamic())
    except RuntimeError as error:  # torch says which tensors
        raise I2LError(f"{name} is not the demo model's: {str(error).splitlines()[-1].strip()}") from error
    return patcher
