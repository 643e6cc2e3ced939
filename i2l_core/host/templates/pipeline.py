"""The stand-in for DiffSynth's pipeline (`predictors/template/pipe.py`) over a VAE and a CLIP of the user."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import I2LError
from ...predictors.template.pipe import Pipe


def pipe_of(device: torch.device, dtype: torch.dtype, vae: Any = None, clip: Any = None) -> Pipe:
    """What is None is not there for the program."""
    return Pipe(
        device,
        dtype,
        None if vae is None else lambda pixels: encode_picture(vae, pixels),
        None if clip is None else lambda text: encode_prompt(clip, text)[0][0],
    )


def encode_picture(vae: Any, pixels: Tensor) -> Tensor:
    """(B, H, W, 3), 0 to 1 -> latents. Raises I2LError for sides that the VAE would crop."""
    step = vae.spacial_compression_encode()
    height, width = pixels.shape[1:3]
    if height % step or width % step:
        raise I2LError(
            f"this VAE needs pictures whose sides are multiples of {step} pixels, got {width} x {height}: use Scale "
            f"Image to Total Pixels with resolution_steps {step}"
        )
    return vae.encode(pixels)


def encode_prompt(clip: Any, text: str) -> list[Any]:
    """The CONDITIONING of a prompt, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
