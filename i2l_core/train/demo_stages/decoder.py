"""Stage `decoder`: train the VAE decoder on crops, with a little noise on the latents.

The noise imitates small errors of sampled latents; without it the decoder would turn them into grain.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.autoencoder import PATCH, PatchBasis, build_decoder
from ..plan import Plan
from .data import draw_pictures, test_pool, train_pool
from .run import StageRun

_CROP = 8  # latent cells a side
_NOISE = 0.08  # standard deviation on latents of unit variance


def train(
    folder: Path, plan: Plan, basis: PatchBasis, start: nn.Module | None = None
) -> tuple[StageRun, nn.Sequential]:
    """`start`: a trained decoder from which a new run continues."""
    torch.manual_seed(plan.seed)
    pool, unseen = train_pool(), test_pool()
    decoder = build_decoder()
    decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, p in decoder.named_parameters():
        if name.endswith("conv.4.weight"):  # residual branches start small
            nn.init.normal_(p, std=0.01)
    if start is not None:
        decoder.load_state_dict(start.state_dict())
    run = StageRun(folder, plan, {"decoder": decoder}, lambda k, p: False)
    side = _CROP * PATCH

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        y, x = (
            PATCH * rng.integers(pool.pictures.shape[2] // PATCH - _CROP + 1, size=(2, plan.batch))
        ).tolist()
        crops = [
            pool.pictures[s, r, j : j + side, i : i + side]
            for s, r, j, i in zip(styles, rows, y, x, strict=True)
        ]
        pictures = torch.stack([torch.from_numpy(c.copy()) for c in crops]).float() / 255
        latents = basis.encode(pictures)
        latents = latents + _NOISE * torch.randn(latents.shape, generator=generator)
        restored, target = decoder(latents), pictures.permute(0, 3, 1, 2)  # BHWC -> BCHW
        return restoration_loss(2 * restored, 2 * target)

    @torch.no_grad()
    def measure(step: int) -> dict:
        pictures = torch.from_numpy(unseen.pictures[:24, 0].copy()).float() / 255
        restored = decoder(basis.encode(pictures)).clamp(0, 1).permute(0, 2, 3, 1)
        linear = basis.decode(basis.encode(pictures)).clamp(0, 1)
        return {
            "unseen_psnr": round(_psnr(restored, pictures), 2),
            "linear_psnr": round(_psnr(linear, pictures), 2),
        }

    run.train(loss, [(100, measure)])
    return run, decoder


def restoration_loss(restored: Tensor, target: Tensor) -> Tensor:
    """Of pictures from -1 to 1: squares, amounts and edges of the error."""
    a, b = restored / 2, target / 2
    return F.mse_loss(a, b) * 4 + F.l1_loss(a, b) + 0.5 * _edges(a, b)


def _edges(a: Tensor, b: Tensor) -> Tensor:
    """Mean error of the differences between neighbouring pixels: blur costs more than a small shift of tone."""
    d = a - b
    return d.diff(dim=2).abs().mean() + d.diff(dim=3).abs().mean()


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * F.mse_loss(a, b).log10())
