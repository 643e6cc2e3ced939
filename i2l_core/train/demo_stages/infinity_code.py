"""The linear code that the encoder of the demo world's Infinity starts from.

A convolutional encoder with signs behind it learns slowly from nothing. A linear code of patches learns in a minute,
and the encoder can compute it: its residual branches start at zero, its strided convolutions gather 2 x 2 places, and a
pair of channels x and -x passes the last activation, silu(x) - silu(-x) = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.infinity import BITS, CODER, SCALES
from ...demo.pool import Pool
from ...infinity.bits import quantised
from ...infinity.coder import Encoder
from .decoder import restoration_loss

_STEPS, _BATCH, _LR = 1200, 32, 2e-3
_SAMPLE = 1500  # pictures for the components
_STEADY = 3.0  # constant channels beside the code: the last norm divides by hardly more than them


@dataclass(frozen=True)
class LinearCode:
    """Patches (cell x cell x 3) -> codes: `weight` (bits, 3, cell, cell), `bias` (bits,), in the type of pictures."""

    weight: Tensor
    bias: Tensor

    def encode(self, pictures: Tensor) -> Tensor:
        return F.conv2d(pictures, self.weight, self.bias, stride=CODER.cell)


def fit(pool: Pool, seed: int) -> LinearCode:
    """From the principal components of patches, trained with a linear decoder behind the signs."""
    rng = np.random.default_rng(seed)
    cell = CODER.cell
    patches = F.unfold(as_input(pool.pictures[:_SAMPLE, 0]), cell, stride=cell).mT.flatten(0, 1)
    mean, values, vectors = _components(patches, BITS)
    scale = values**-0.25  # half-way to equal sizes: large components need several scales
    scale = scale / (values * scale.square()).sum().sqrt()
    code = [(vectors * scale).T.contiguous(), -mean @ (vectors * scale)]
    decode = [(vectors / scale).contiguous(), mean.clone()]
    params = [p.requires_grad_() for p in (*code, *decode)]
    optimiser = torch.optim.Adam(params, _LR, betas=(0.9, 0.98))
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _LR * min(1.0, (step + 1) / 50, (_STEPS - step) / (0.4 * _STEPS))
        styles = rng.integers(len(pool.styles), size=_BATCH)
        pictures = as_input(pool.pictures[styles, rng.integers(pool.pictures.shape[1], size=_BATCH)])
        latents = LinearCode(code[0].view(BITS, 3, cell, cell), code[1]).encode(pictures)
        columns = decode[0] @ quantised(latents, SCALES).flatten(2) + decode[1][:, None]
        loss = restoration_loss(F.fold(columns, SCALES.pixels, cell, stride=cell), pictures)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return LinearCode(code[0].detach().view(BITS, 3, cell, cell), code[1].detach())


@torch.no_grad()
def put_into(encoder: Encoder, code: LinearCode, pictures: Tensor) -> None:
    """Set an encoder of CODER to compute the code. `pictures`: of what the levels in between keep the largest
    components, as each has fewer channels than 2 x 2 places of the one before."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            cast(Tensor, module.bias).zero_()
        if isinstance(module, nn.Conv2d):
            if module in (encoder.conv_in, encoder.conv_out) or module.stride == (2, 2):
                module.weight.zero_()
            elif module.kernel_size == (1, 1):
                module.weight.copy_(torch.eye(*module.weight.shape[:2])[:, :, None, None])
    for name, p in encoder.named_parameters():
        if name.endswith("conv2.weight"):
            p.zero_()
    cast(nn.Conv2d, encoder.conv_in).weight[range(3), range(3), 1, 1] = 1
    x, weight = pictures, code.weight  # weight: of the channels of x, at 1 / size of the pictures' pixels
    for number, width in enumerate(CODER.encoder[:-1]):
        gathered = F.pixel_unshuffle(x, 2)  # channel-major, then 2 x 2
        basis = _basis(gathered, width)
        stride = cast(nn.Conv2d, encoder.down[number].downsample.conv)  # type: ignore[union-attr]
        stride.weight[: basis.shape[1], : x.shape[1], :2, :2] = basis.T.unflatten(1, (x.shape[1], 2, 2))
        weight = torch.einsum("bkhw,kc->bchw", F.pixel_unshuffle(weight, 2), basis)
        x = torch.einsum("bkhw,kc->bchw", gathered, basis)
    _put_last(encoder, weight[:, :, 0, 0], code.bias)


def _put_last(encoder: Encoder, weight: Tensor, bias: Tensor) -> None:
    """The last level: pairs of each code and its negative, spread over the groups of the norm with steady channels."""
    width, groups = CODER.encoder[-1], CODER.groups
    each, size = BITS // groups, width // groups
    mix = cast(nn.Conv2d, encoder.down[-1].block[0].nin_shortcut)  # type: ignore[index]
    norm, out = cast(nn.GroupNorm, encoder.norm_out), cast(nn.Conv2d, encoder.conv_out)
    mix.weight.zero_()
    mix_bias = cast(Tensor, mix.bias)
    for group in range(groups):
        place, codes = group * size, range(group * each, (group + 1) * each)
        for i, code in enumerate(codes):
            for sign, channel in ((1, place + i), (-1, place + each + i)):
                mix.weight[channel, : weight.shape[1], 0, 0] = sign * weight[code]
                mix_bias[channel] = sign * bias[code]
                out.weight[code, channel, 1, 1] = sign
        steady = torch.arange(place + 2 * each, place + size)
        mix_bias[steady] = _STEADY * (1 - 2 * (steady % 2)).float()
    norm.weight.fill_(_STEADY * ((size - 2 * each) / size) ** 0.5)


def _basis(x: Tensor, most: int) -> Tensor:
    """Orthogonal directions (K, at most `most`) of the largest values of (B, K, H, W)."""
    rows = x.movedim(1, -1).flatten(0, 2)
    if rows.shape[1] <= most:
        return torch.eye(rows.shape[1])
    return torch.linalg.eigh((rows.T @ rows).double())[1].flip(1)[:, :most].float()


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
    return mean, values.flip(0)[:count].float(), vectors.flip(1)[:, :count].float()


def as_input(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) from -1 to 1."""
    return (
        torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    )  # BHWC -> BCHW
