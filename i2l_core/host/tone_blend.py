"""Style Tone Blend in the host: a function after CFG, on a clone of the user's MODEL. It needs no predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import I2LError
from ..references import Reference, with_positive_weight
from ..schedule import Schedule
from ..tone_blend import ToneSettings, blend_tone, tone_of
from .percents import SigmaToPercent

_LONGEST = 512  # pixels of a reference's longer side: more cannot be seen in the cells of a grid


@dataclass(frozen=True, eq=False)
class ToneBlend:
    """The function that ComfyUI calls after CFG. `tone`: (1, C, g, g) in the model's own scale, on the CPU."""

    tone: Tensor
    settings: ToneSettings
    schedule: Schedule

    def __call__(self, args: Mapping[str, Any]) -> Tensor:
        denoised, sampling = args["denoised"], args["model"].model_sampling
        factor = self._factor(args["sigma"], sampling)
        if factor == 0 or self.settings.strength == 0:
            return denoised
        pictures = _pictures(denoised)
        if pictures.shape[1] != self.tone.shape[1]:
            raise I2LError(
                f"Style Tone Blend: the VAE makes latents of {self.tone.shape[1]} channels, the MODEL samples "
                f"{pictures.shape[1]}; connect the VAE of this MODEL"
            )
        return blend_tone(pictures, self.tone, self.settings, factor).view(denoised.shape)

    def _factor(self, sigmas: Tensor, sampling: Any) -> float:
        """What the schedule makes of the strength at this step."""
        if self.schedule.is_constant:
            return 1.0
        sigma = float(sigmas.flatten()[0])  # waits for the device: only where a window or curve needs it
        start, end = (float(sampling.percent_to_sigma(p)) for p in (self.schedule.start, self.schedule.end))
        if not end <= sigma <= start:
            return 0.0
        curve = self.schedule.curve
        return 1.0 if curve is None else curve(SigmaToPercent(sampling).at(sigma))


def with_tone(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    references: Sequence[Reference],
    settings: ToneSettings,
    schedule: Schedule,
) -> ModelPatcher:
    """A clone of `model` whose pictures take the tone of the references. Several blends add up, in order.

    Raises I2LError for a reference that the VAE cannot encode to a picture's latent, or smaller than the grid.
    """
    used = with_positive_weight(references)
    latents = []
    for reference in used:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents.append(_pictures(model.model.process_latent_in(vae.encode(_small(reference)))).cpu().float())
    tone = tone_of(latents, [reference.weight for reference in used], settings)
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(ToneBlend(tone, settings, schedule))
    return clone


def _small(reference: Reference) -> Tensor:
    """(1, H, W, 3) for the VAE: sides at most `_LONGEST` and multiples of 16; what a mask hides is filled with the mean
    colour of the rest."""
    pixels = reference.mask_filled().pixels.movedim(-1, 0)[None]
    scale = min(1.0, _LONGEST / max(reference.size))
    size = [max(16, round(side * scale / 16) * 16) for side in reference.size]
    small = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return small.clamp(0, 1).movedim(1, -1)


def _pictures(latents: Tensor) -> Tensor:
    """(B, C, H, W) of a latent with or without a time axis of one frame. Raises I2LError for anything else."""
    if getattr(latents, "is_nested", False):
        raise I2LError("Style Tone Blend works on pictures; this MODEL samples several latents at once")
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents.squeeze(2)
    if latents.ndim != 4:
        raise I2LError(
            f"Style Tone Blend works on pictures; this MODEL samples latents of the shape {tuple(latents.shape)}: "
            "video, sound or 3D"
        )
    return latents
