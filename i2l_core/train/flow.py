"""Flow matching as the host samples it: noise levels, interpolation, the loss (paper, eq. 5 and 6).

The paper counts t from noise to picture; the host counts sigma = 1 - t from picture to noise, and its models give
noise - picture. Everything here is in the host's terms; the loss is the same number.
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
