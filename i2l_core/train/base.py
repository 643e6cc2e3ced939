"""The protocols of a frozen base model and of its latent codec, for training.

Conventions are those of the host (train/flow.py): x = (1 - sigma) latent + sigma noise; models predict noise - latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ..lora import Target
from ..predictors.query.config import LayerSpec

Texts = Mapping[str, Tensor]  # what a base model takes for one prompt, by the host's names

Layers = Mapping[Target, tuple[Tensor, Tensor]]
"""Target -> (down (S, k, d_in), up (S, d_out, k)): the LoRAs of S equal groups of consecutive rows."""


class LatentCodec(Protocol):
    """Encodes pictures and prompts for the base model. Frozen, used without gradients."""

    def check_prompt(self, prompt: str, name: str) -> None:
        """Raise I2LError naming the picture if the model cannot encode its prompt."""
        ...

    def texts(self, prompts: Sequence[str]) -> list[Texts]: ...

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, H, W, 3) floats 0..1 -> latents (B, C, h, w), as the host's VAE Encode gives them."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`: latents -> (B, H, W, 3) floats 0..1."""
        ...

    def release(self) -> None:
        """Free what only `texts` and `encode` need."""
        ...


class Base(Protocol):
    """A frozen, differentiable diffusion model on one device."""

    id: str  # as predictor files name it
    layers: tuple[LayerSpec, ...]  # every layer that can be adapted
    noise_scale: float  # standard deviation of pure noise

    def sigmas(self, u: Tensor) -> Tensor:
        """Uniform 0..1 (N,) -> noise levels (N,), by the model's own time shift."""
        ...

    def process_in(self, latents: Tensor) -> Tensor:
        """Latents of the VAE -> latents of the model."""
        ...

    def process_out(self, latents: Tensor) -> Tensor: ...

    def velocity(self, x: Tensor, sigma: Tensor, texts: Sequence[Texts], layers: Layers | None) -> Tensor:
        """Predict the velocity, noise - latent, (B, C, h, w) float32, with these LoRAs; differentiable in them.

        `x`: (B, C, h, w), `sigma`: (B,), `texts`: B of them, `layers`: B a multiple of S.
        """
        ...
