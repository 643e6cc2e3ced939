"""Predictor and encoder under ComfyUI's memory management: it decides what is on the GPU, and when.

Both are ordinary model patchers, as checkpoints are. Loading them frees only what is missing, so a checkpoint
stays where it is when there is room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import nn

from ..encoders import SQUARE, EncoderConfig
from ..lora import LoRA
from ..predictors.checkpoint import LoadedPredictor, load_predictor
from ..predictors.query import QueryConfig


@dataclass(frozen=True, eq=False)
class HostPredictor:
    """A predictor file as the host holds it; what travels on an I2L_PREDICTOR socket.

    `patcher` (of the predictor) and `get_models` are names that the host looks for: so it knows what the
    running prompt still needs. `neutrals`: number of pictures -> the LoRA of so many gray ones.
    """

    loaded: LoadedPredictor
    encoder: comfy.model_patcher.ModelPatcher
    patcher: comfy.model_patcher.ModelPatcher
    dtype: torch.dtype  # what both compute in
    neutrals: dict[int, LoRA] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [self.encoder, self.patcher]

    def load_encoder(self, pixels: int) -> None:
        """Bring the encoder to its device. `pixels`: of the largest picture.

        A plain transformers module cannot run with half of its weights elsewhere: it is loaded whole.
        """
        needed = encoder_memory(self.loaded.encoder.config, pixels, self.dtype)
        comfy.model_management.load_models_gpu([self.encoder], memory_required=needed, force_full_load=True)

    def load_predictor(self, tokens: int) -> None:
        """Bring the predictor to its device, or as much of it as fits. `tokens`: of all pictures together."""
        needed = predictor_memory(self.loaded.config, tokens, self.dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)


def load_host_predictor(path: str | Path) -> HostPredictor:
    """Read a predictor file and hand it to the host. Raises I2LError as `load_predictor` does."""
    device = comfy.model_management.get_torch_device()
    bf16 = comfy.model_management.should_use_bf16(device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    loaded = load_predictor(path, ops=comfy.ops.manual_cast)
    loaded.predictor.requires_grad_(False)
    # the predictor casts layer by layer, so a 16 bit file may stay as small as it is; the encoder cannot
    if loaded.predictor.queries.dtype == torch.float32:
        loaded.predictor.to(dtype)
    loaded.encoder.to(dtype)
    return HostPredictor(loaded, _patcher(loaded.encoder), _patcher(loaded.predictor), dtype)


def encoder_memory(config: EncoderConfig, pixels: int, dtype: torch.dtype) -> int:
    """Bytes that encoding one picture takes beside the weights, estimated from the widest layer."""
    sizes = config.config
    tokens = (sizes["image_size"] // config.patch) ** 2 if config.kind == SQUARE else config.max_patches or 0
    width = 12 * sizes["hidden_size"] + 3 * sizes["intermediate_size"]
    picture = 3 * 4 * (3 * pixels + 4 * tokens * config.patch**2)  # float32 pixels, while they are resized
    return tokens * width * dtype.itemsize + picture


def predictor_memory(config: QueryConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that predicting from so many image tokens takes beside the weights, estimated likewise."""
    states = (config.n_queries + tokens) * (14 * config.hidden + 3 * config.mlp)
    lora = sum(config.rank * (layer.d_in + layer.d_out) for layer in config.layers)
    return (states + tokens * config.token_dim + 3 * lora) * dtype.itemsize


def _patcher(module: nn.Module) -> comfy.model_patcher.ModelPatcher:
    # looked up now: ComfyUI chooses the class of patcher when it starts
    return comfy.model_patcher.CoreModelPatcher(
        module,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
