"""The VAE and text encoder named by a training config, run by the host and loaded when first needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor

from ...base_models import ARCHITECTURES
from ...errors import I2LError
from ...train.base import Texts
from ...train.config import PIXEL_SPACE, BaseTable

# CLIP type -> class of a text encoder without weights
_TOKENIZERS = {
    kind: getattr(comfy.supported_models, name)
    for one in ARCHITECTURES
    for kind, name in one.tokenizers.items()
}


class HostLatentCodec:
    """A `train.base.LatentCodec`."""

    def __init__(self, table: BaseTable) -> None:
        self._table = table
        self._clip: comfy.sd.CLIP | None = None
        self._vae: comfy.sd.VAE | None = None

    def check_prompt(self, prompt: str, name: str) -> None:
        pass  # the host's text encoders read anything

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> list[Texts]:
        """The CONDITIONING of each prompt: "cond", and the other tensors under the host's names."""
        clip = self._clip = self._clip or _load_clip(self._table)
        return [_tensors(clip.encode_from_tokens_scheduled(clip.tokenize(prompt))) for prompt in prompts]

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        vae = self._vae = self._vae or _load_vae(self._table)
        return vae.encode(pictures.cpu())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._vae = self._vae or _load_vae(self._table)
        return vae.decode(latents.cpu()).clamp(0, 1)

    def release(self) -> None:
        self._clip = None
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


def _load_clip(table: BaseTable) -> comfy.sd.CLIP:
    if not table.text_encoders:
        if table.text_type not in _TOKENIZERS:
            raise I2LError(
                "[base] text_encoders: the data set lacks text embeddings of some prompts, or of the empty one; name "
                "the text encoder files and their text_type"
            )
        return comfy.sd.CLIP(_TOKENIZERS[table.text_type]({}).clip_target({}), parameters=0)
    kind = getattr(comfy.sd.CLIPType, table.text_type.upper(), None)
    if kind is None:
        known = ", ".join(name.lower() for name in comfy.sd.CLIPType.__members__)
        raise I2LError(f"[base] text_type {table.text_type!r} is not known; known types: {known}")
    for file in table.text_encoders:
        if not os.path.isfile(file):
            raise I2LError(f"[base] text_encoders: there is no file {file}")
    return comfy.sd.load_clip(list(table.text_encoders), clip_type=kind)


def _load_vae(table: BaseTable) -> comfy.sd.VAE:
    if not table.vae:
        raise I2LError("[base] vae: the data set lacks latents of some pictures; name the VAE's file")
    if table.vae == PIXEL_SPACE:
        return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    if not os.path.isfile(table.vae):
        raise I2LError(f"[base] vae: there is no file {table.vae}")
    tensors, metadata = comfy.utils.load_torch_file(table.vae, return_metadata=True)
    vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
    if vae.first_stage_model is None:
        raise I2LError(f"[base] vae: ComfyUI does not recognise {Path(table.vae).name} as a VAE")
    return vae


def _tensors(conditioning: Sequence[Sequence[Any]]) -> Texts:
    """One entry of a CONDITIONING as tensors only. Raises I2LError for what a file could not keep."""
    ((cond, rest),) = conditioning
    kept = {"cond": cond}
    for name, value in rest.items():
        if isinstance(value, Tensor):
            kept[name] = value
        elif value is not None:
            raise I2LError(
                f"the text encoder gives {name} as {type(value).__name__}, which training cannot store"
            )
    return {name: tensor.detach().cpu() for name, tensor in kept.items()}
