"""Sample the demo model without ComfyUI, as KSampler does with euler and the simple scheduler.

For training sheets and measurements over hundreds of styles: each row of a batch has its own LoRA.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone, LayerPair

_TABLE = 1000  # noise levels in the host's table
SHIFT = 3.0  # of the Z-Image class in the host


def shifted(u: Tensor, shift: float = SHIFT) -> Tensor:
    """Uniform 0..1 -> noise levels as the host's sampling spends its steps on them."""
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class Sampling:
    steps: int = 20
    cfg: float = 3.0
    denoise: float = 1.0  # below 1: so many steps, but only the last part of the noise levels, as in KSampler

    def sigmas(self) -> Tensor:
        """Noise levels (steps + 1,), from 1 (or less, with `denoise`) down to 0."""
        whole = int(self.steps / self.denoise)
        indices = torch.tensor([_TABLE - int(i * _TABLE / whole) for i in range(whole)][-self.steps :])
        return torch.cat([shifted(indices / _TABLE), torch.zeros(1)])


@torch.no_grad()
def sample(
    backbone: Backbone,
    noise: Tensor,
    context: Tensor,
    negative: Tensor,
    sampling: Sampling,
    lora: Mapping[str, LayerPair] | None = None,
    negative_lora: Mapping[str, LayerPair] | None = None,
    after: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Noise (B, C, H, W) -> latents. `lora` acts on the positive branch, `negative_lora` on the negative one.

    For symmetric guidance (what a merged LoRA does) pass the same for both. `after`: (denoised latents (B, C, H, W)
    after guidance, noise level ()) -> what is taken in their place, as the host's post-CFG functions do.
    """
    x, sigmas = noise, sampling.sigmas().to(noise.device)
    for now, then in itertools.pairwise(sigmas):
        level = now.expand(len(x))
        v = backbone(x, level, context, lora)
        if sampling.cfg != 1:
            v_negative = backbone(x, level, negative, negative_lora)
            v = v_negative + sampling.cfg * (v - v_negative)
        if after is not None:
            v = (x - after(x - now * v, now)) / now
        x = x + (then - now) * v
    return x
