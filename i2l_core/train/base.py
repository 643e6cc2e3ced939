"""What training needs of a frozen base model, and the demo world's own backbone as one.

Everything is in the host's terms (train/flow.py): x = (1 - sigma) latent + sigma noise, the model gives noise - latent.
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
    """What turns pictures and prompts into what the base model takes. Frozen, and used without gradients."""

    def check_prompt(self, prompt: str, name: str) -> None:
        """Raise I2LError naming the picture when the model cannot read a prompt of the data set."""
        ...

    def texts(self, prompts: Sequence[str]) -> list[Texts]: ...

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, H, W, 3) floats 0..1 -> latents (B, C, h, w), as the host's VAE Encode gives them."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The way back, values within 0..1."""
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
        """Noise - latent, (B, C, h, w) float32, as the model with those LoRAs sees it; differentiable in them.

        `x`: (B, C, h, w), `sigma`: (B,), `texts`: B of them, `layers`: B a multiple of S.
        """
        ...
