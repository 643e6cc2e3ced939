"""The linear code that the encoder of the demo world's Infinity computes.

A convolutional encoder with signs behind it learns slowly from nothing. The principal components of patches are as good
a code at once, and the encoder can compute them: its residual branches are zero, its strided convolutions gather 2 x 2
places, and a pair of channels x and -x passes the last activation, silu(x) - silu(-x) = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.infinity import BITS, CODER
from ...demo.pool import Pool
from ...infinity.coder import Encoder

_SAMPLE = 1500  # pictures for the components
_POWER = 0.25  # of a component's deviation that is divided out: 0 none, 1 all
_LENGTH = 2.0  # root mean square of a code: what three scales of length 1 reach well
_MIXED = 4  # components that share their bits: with one bit each the small ones would be mostly wrong
_STEADY = 3.0  # constant channels beside the code: the last norm divides by hardly more than them


@dataclass(frozen=True)
class LinearCode:
    """Patches (cell x cell x 3) -> codes: `weight` (bits, 3, cell, cell), `bias` (bits,), in the type of pictures."""

    weight: Tensor
    bias: Tensor

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) from -1 to 1 -> (B, bits, H / cell, W / cell)."""
        return F.conv2d(pictures, self.weight, self.bias, stride=CODER.cell)


def fit(pool: Pool) -> LinearCode:
    """From the principal components of the pool's patches."""
    cell = CODER.cell
    patches = F.unfold(as_input(pool.pictures[:_SAMPLE, 0]), cell, stride=cell).mT.flatten(0, 1)
    mean, values, vectors = _components(patches, BITS)
    scale = values ** (-_POWER / 2)
    scale = scale * _LENGTH / (values * scale.square()).sum().sqrt()
    code = vectors * scale @ mixing()
    return LinearCode(code.T.reshape(BITS, 3, cell, cell).contiguous(), -mean @ code)


def mixing() -> Tensor:
    """(bits, bits), orthogonal: each group of a large, two middle and a small component is mixed evenly."""
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    groups = BITS // _MIXED
    matrix = torch.zeros(BITS, BITS)
    for group in range(groups):
        rows = torch.arange(_MIXED) * groups + group
        matrix[rows[:, None], rows[None]] = hadamard
    return matrix


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
