"""Flow matching in the convention of the host: noise levels, interpolation, loss (paper, eq. 5 and 6).

The paper's t runs from noise to picture. The host's sigma = 1 - t runs from picture to noise, and its models predict
noise - picture. This code uses sigma; the loss is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..demo.sampler import shifted


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Stratified noise levels (count,), in random order: every part of the range in every batch."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return shifted(u[torch.randperm(count, generator=generator)])


def noisy(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    s = sigma.view(-1, 1, 1, 1)
    return (1 - s) * latents + s * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    return noise - latents
