"""Infinity's picture coder as a VAE of the host: VAE Decode, VAE Decode (Tiled) and VAE Encode work with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import I2LError
from ...infinity.coder import Coder, CoderConfig
from ...infinity.files import TRANSFORMER, check_coder, coder_weights, kind_of
from .read import check_values, read_weights, shapes_of

_MAPS = 5  # maps of the finest level in memory at once: what goes around a residual block, and what is in it
_ELEMENT = 4  # bytes: it computes in float32


class InfinityVAE(comfy.sd.VAE):
    """A LATENT is (B, bits, H / cell, W / cell): what is decoded is a sum of codes, what is encoded is not quantised
    yet. It always computes in float32, because the bits of a picture are the signs of what is encoded.

    Decoding raises I2LError for a latent of another number of channels.
    """

    def __init__(self, config: CoderConfig, weights: dict[str, Tensor]) -> None:
        with _without_its_warning():
            super().__init__(sd={})  # what all VAEs have in common; it finds no kind that it knows, and stops
            casting: Any = comfy.ops.manual_cast  # stands for torch.nn
        coder = Coder(config, casting, device="meta", dtype=torch.float32)
        coder.load_state_dict(
            {name: tensor.float() for name, tensor in weights.items()}, strict=True, assign=True
        )
        coder.requires_grad_(False)
        self.first_stage_model = coder.eval()
        self.latent_channels = config.bits
        self.downscale_ratio = self.upscale_ratio = config.cell
        self.working_dtypes = [torch.float32]
        self.vae_dtype = torch.float32
        self.memory_used_encode = lambda shape, dtype: nbytes(config, shape[2], shape[3])
        self.memory_used_decode = lambda shape, dtype: nbytes(
            config, shape[2] * config.cell, shape[3] * config.cell
        )
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        # looked up now: ComfyUI chooses the class of patcher when it starts
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            coder, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )

    @property
    def coder(self) -> Coder:
        return cast(Coder, self.first_stage_model)

    @property
    def config(self) -> CoderConfig:
        return self.coder.config


def nbytes(config: CoderConfig, height: int, width: int) -> int:
    """Bytes in use at most, beside the weights, for one picture of so many pixels."""
    widest = max(config.base, *config.encoder[:2], *config.decoder[:2])
    return _MAPS * widest * height * width * _ELEMENT


def load_vae(path: Path) -> InfinityVAE:
    """A VAE from a released file, with or without the names of its wrappers. Raises I2LError, with the file's name, for
    anything that is not exactly a VAE of Infinity."""
    weights = read_weights(path, "a VAE of Infinity")
    try:
        if kind_of(weights) == TRANSFORMER:
            raise I2LError(
                "this is an Infinity transformer; choose its VAE here, and put this into models/diffusion_models"
            )
        config = check_coder(shapes_of(weights))
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error
    found = coder_weights(weights)
    check_values(path, found)
    vae = InfinityVAE(config, found)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path,))
    return vae


def load_vae_patcher(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """As the host's own function of this name: it has no VAE without dynamic loading."""
    return load_vae(path).patcher


def infinity_vae(vae: Any) -> InfinityVAE:
    """The VAE of a socket. Raises I2LError for one of another model."""
    if not isinstance(vae, InfinityVAE):
        raise I2LError("expected a VAE of Infinity, got one of another model; use Load Infinity VAE")
    return vae


@contextmanager
def _without_its_warning() -> Iterator[None]:
    def keeps(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("WARNING: No VAE weights detected")

    root = logging.getLogger()
    root.addFilter(keeps)
    try:
        yield
    finally:
        root.removeFilter(keeps)
