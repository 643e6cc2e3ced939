"""Apply what a template made: caches to both prompts, its picture and mask to the latent, its LoRAs to sockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ...errors import I2LError
from ...kv_caches.cache import KVCache
from ...lora import LoRA
from ..kv_caches.apply import apply_caches
from .base import Made, Progress, Template, TemplateInputs, with_inputs
from .pipeline import encode_picture

NO_LATENT = (
    "the latent output of Apply Template is for templates that inpaint; connect a latent to its input, or another one "
    "to the sampler"
)


@dataclass(frozen=True, eq=False)
class AppliedTemplate:
    """CONDITIONING for both sides, the LATENT to sample, and what happened, for people."""

    positive: list[Any]
    negative: list[Any]
    latent: Any
    report: str


def apply_template(
    positive: list[Any],
    negative: list[Any],
    value: TemplateInputs | Template,
    latent: dict[str, Any] | None,
    progress: Progress,
) -> AppliedTemplate:
    """Neither CONDITIONING nor LATENT is changed in place.

    Raises I2LError when the template does not take its inputs, or gives nothing that belongs here.
    """
    inputs = with_inputs(value)
    name = inputs.template.name
    made = inputs.make(progress)
    caches, pictures = (made.positive, made.negative), (made.picture, made.mask)
    if all(one is None for one in (*caches, *pictures)):
        hint = "gives a LoRA: use Template to LoRA" if made.lora else "gave nothing that can be applied"
        raise I2LError(f"{name} {hint}")
    first, second = apply_caches(positive, negative, made.positive, made.negative)
    lines = [str(inputs)]
    if any(cache is not None for cache in caches):
        lines.append(f"positive: {_size(made.positive)}; negative: {_size(made.negative)}")
    if any(picture is not None for picture in pictures):
        latent = _with_picture(made, inputs, latent)
        lines.append("inpaints: connect latent to the sampler")
    if made.lora:
        lines.append("gives a LoRA too: Template to LoRA")
    lines += [made.note] if made.note else []
    passed = ExecutionBlocker(NO_LATENT) if latent is None else latent
    return AppliedTemplate(first, second, passed, "\n".join(lines))


def loras_of(value: TemplateInputs | Template, progress: Progress) -> tuple[LoRA, LoRA | None, str]:
    """The LoRA of the positive side, that of the negative one, and a report. Raises I2LError when there is none."""
    inputs = with_inputs(value)
    made = inputs.make(progress)
    if made.lora is None:
        hint = ": use Apply Template" if made.positive is not None else ""
        raise I2LError(f"{inputs.template.name} gives no LoRA{hint}")
    lines = [str(inputs), f"rank {made.lora.rank}, {made.lora.n_layers} layers"]
    return made.lora, made.neutral, "\n".join([*lines, *([made.note] if made.note else [])])


def _size(cache: KVCache | None) -> str:
    return "nothing" if cache is None else f"{cache.tokens} tokens, {cache.nbytes / 1e6:.0f} MB"


def _with_picture(made: Made, inputs: TemplateInputs, latent: dict[str, Any] | None) -> dict[str, Any]:
    """The picture's latents instead of those of `latent`, and the mask at their size, as DiffSynth shrinks it."""
    if made.picture is not None:
        vae = getattr(inputs.given, "vae", None)
        if vae is None:
            raise I2LError(
                f"{inputs.template.name} inpaints: connect a VAE to the node that gives its inputs"
            )
        latent = {"samples": encode_picture(vae, pixels_of(made.picture))}
    elif latent is None:
        raise I2LError(f"{inputs.template.name} gives a mask: connect the latent that it belongs to")
    if made.mask is None:
        return latent
    return {**latent, "noise_mask": noise_mask(made.mask, latent["samples"])}


def noise_mask(mask: Image.Image, samples: Tensor) -> Tensor:
    """(1, 1, h, w), 0 to 1, of the latents' size: the mean of the channels, resized as PIL does.

    That is how DiffSynth's pipeline reads inpaint_mask (Flux2Unit_Inpaint). The host resizes it no more.
    """
    height, width = samples.shape[-2:]
    return pixels_of(mask.convert("RGB").resize((width, height))).mean(-1)[:, None]


def pixels_of(picture: Image.Image) -> Tensor:
    """(1, H, W, 3), 0 to 1."""
    rgb = picture.convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(1, rgb.height, rgb.width, 3) / 255
