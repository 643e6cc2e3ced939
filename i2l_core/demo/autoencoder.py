"""The autoencoder of the demo world, in the layers of ComfyUI's tiny VAE for 16-channel latents (taef1).

The encoder is computed, not trained: its convolutions hold the principal components of 8x8 patches exactly. Linear
latents are nearly free to compute during training and close to Gaussian, which suits flow matching. The decoder is an
ordinary trained network that restores what 16 numbers per patch leave out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CHANNELS = 16  # latent channels
PATCH = 8  # pixels a side per latent cell
HIDDEN = 64  # channels of the host's tiny VAE
# latent format of the Flux family: model latents = (vae - shift) * scale
HOST_SCALE, HOST_SHIFT = (0.3611, 0.1159)
# mean colour of a patch in -1..1 from the first three model latents; the others have no part in it. Least squares on
# pictures of the generator, with a residual of 0.0003
COLOURS = ((0.2328, 0.2316, 0.2362), (-0.0049, 0.1608, -0.1528), (0.1769, -0.083, -0.093))
COLOUR_BIAS = (0.1349, 0.1377, 0.1193)

# Latent channel k has standard deviation ~ eigenvalue ** (_FLATTEN / 2). 1 keeps the natural spectrum, in which the
# fine channels drown in noise at once; 0 makes unpredictable detail weigh as much as the palette.
_FLATTEN = 0.4


@dataclass(frozen=True)
class PatchBasis:
    """latent = basis @ (patch - mean); patch = inverse @ latent + mean. Patches as (row, column, rgb) vectors."""

    mean: Tensor  # (192,)
    basis: Tensor  # (CHANNELS, 192)
    inverse: Tensor  # (192, CHANNELS)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in 0..1 -> model latents (B, CHANNELS, H / 8, W / 8)."""
        b, h, w, _ = pictures.shape
        patches = (
            pictures.view(b, h // PATCH, PATCH, w // PATCH, PATCH, 3).permute(0, 1, 3, 2, 4, 5).flatten(3)
        )
        return ((patches - self.mean) @ self.basis.T).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """The linear picture of a latent: what the decoder starts from, for tests and previews."""
        patches = latents.permute(0, 2, 3, 1) @ self.inverse.T + self.mean
        b, h, w, _ = patches.shape
        return (
            patches.view(b, h, w, PATCH, PATCH, 3)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, h * PATCH, w * PATCH, 3)
        )


def fit_basis(pictures: Tensor) -> PatchBasis:
    """Principal components of the 8x8 patches of pictures (B, H, W, 3) in 0..1, computed in float64."""
    patches = _patches(pictures.double()).flatten(0, 2)
    mean = patches.mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    variance, vectors = variance.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    wanted = variance ** (_FLATTEN / 2)
    wanted = wanted / wanted.square().mean().sqrt()
    gain = wanted / variance.sqrt()
    return PatchBasis(
        mean.float(), (vectors * gain).T.float().contiguous(), (vectors / gain).float().contiguous()
    )


def _patches(pictures: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) -> (B, H / 8, W / 8, 192), each patch as (row, column, rgb)."""
    b, h, w, _ = pictures.shape
    return pictures.view(b, h // PATCH, PATCH, w // PATCH, PATCH, 3).permute(0, 1, 3, 2, 4, 5).flatten(3)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(HIDDEN, HIDDEN), nn.ReLU(), _conv(HIDDEN, HIDDEN), nn.ReLU(), _conv(HIDDEN, HIDDEN)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _conv(n_in: int, n_out: int, **options) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


def build_encoder() -> nn.Sequential:
    """Pictures (B, 3, H, W) in 0..1 -> model latents; keys are those of the host's encoder."""
    stages: list[nn.Module] = [_conv(3, HIDDEN), _Block()]
    for _ in range(3):
        stages += [_conv(HIDDEN, HIDDEN, stride=2, bias=False), _Block(), _Block(), _Block()]
    return nn.Sequential(*stages, _conv(HIDDEN, CHANNELS))


def build_decoder() -> nn.Sequential:
    """Model latents -> pictures (B, 3, H, W) in 0..1; keys are those of the host's decoder."""
    stages: list[nn.Module] = [_Clamp(), _conv(CHANNELS, HIDDEN), nn.ReLU()]
    for _ in range(3):
        stages += [
            _Block(),
            _Block(),
            _Block(),
            nn.Upsample(scale_factor=2),
            _conv(HIDDEN, HIDDEN, bias=False),
        ]
    return nn.Sequential(*stages, _Block(), _conv(HIDDEN, 3))


def encoder_weights(basis: PatchBasis) -> dict[str, Tensor]:
    """The exact linear map of `basis` as weights of `build_encoder()`.

    Pixels are not negative, so ReLUs leave them alone: two strided convolutions gather 2x2 and 4x4 pixels into 12
    and 48 channels, the third projects 8x8 pixels onto the components, each kept as a pair (+c, -c) that survives
    ReLU; the last convolution takes the differences. Everything else is zero.
    """
    weights = {key: torch.zeros_like(value) for key, value in build_encoder().state_dict().items()}
    for rgb in range(3):
        weights["0.weight"][rgb, rgb, 1, 1] = 1
    taps = [(row, column) for row in range(2) for column in range(2)]
    order = [(0, 0, rgb) for rgb in range(3)]  # what each channel holds: (row, column, rgb) within its block
    for stage, key in enumerate(("2.weight", "6.weight")):
        grown = []
        for row, column in taps:
            for channel, (y, x, rgb) in enumerate(order):
                weights[key][len(grown), channel, 1 + row, 1 + column] = 1
                grown.append((y + row * 2**stage, x + column * 2**stage, rgb))
        order = grown
    components = basis.basis.view(CHANNELS, PATCH, PATCH, 3)
    for row, column in taps:
        for channel, (y, x, rgb) in enumerate(order):
            projected = components[:, y + row * 4, x + column * 4, rgb]
            weights["10.weight"][: 2 * CHANNELS, channel, 1 + row, 1 + column] = torch.cat(
                [projected, -projected]
            )
    for k in range(CHANNELS):
        weights["14.weight"][k, k, 1, 1], weights["14.weight"][k, CHANNELS + k, 1, 1] = 1, -1
    weights["14.bias"] = -(basis.basis @ basis.mean)
    return weights


def host_weights(basis: PatchBasis, decoder: nn.Module) -> dict[str, Tensor]:
    """One state dict that ComfyUI's `VAE` class reads as a taef1 pair."""
    weights = {f"taesd_encoder.{k}": v for k, v in encoder_weights(basis).items()}
    weights |= {f"taesd_decoder.{k}": v.detach().float() for k, v in decoder.state_dict().items()}
    return weights | {"vae_scale": torch.tensor(HOST_SCALE), "vae_shift": torch.tensor(HOST_SHIFT)}
