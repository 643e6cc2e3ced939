"""Infinity's picture coder: a convolutional encoder and decoder around signs (bits.py).

Names are the released ones without the wrappers `.conv` and `.norm` (files.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_int
from ..errors import I2LError

_EPS = 1e-6
PREVIEW_PLACES = (8, 16)  # a side, at least and at most
_LARGEST = {"width": 8192, "res_blocks": 16, "bits": 1024}


@dataclass(frozen=True)
class CoderConfig:
    """`bits`: channels of the latent. `encoder` and `decoder`: channels of each level, the finest first. Between levels
    the picture is halved. `groups`: of channels that are normalised together; 0: as in the released files, 32, or 24 of
    widths that 32 does not divide. Raises I2LError for sizes that do not fit."""

    bits: int
    base: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    res_blocks: int = 2
    groups: int = 0

    def __post_init__(self) -> None:
        check_int("the bits of the VAE", self.bits, _LARGEST["bits"])
        check_int("the residual blocks of the VAE", self.res_blocks, _LARGEST["res_blocks"])
        for width in (self.base, *self.encoder, *self.decoder):
            check_int("a width of the VAE", width, _LARGEST["width"])
            if width % (self.groups or 32) and (self.groups or width % 24):
                raise I2LError(
                    f"expected widths of the VAE in multiples of {self.groups or '32 or 24'}, got {width}; "
                    "choose its file"
                )
        if len(self.encoder) != len(self.decoder) or not 1 <= len(self.encoder) <= 8:
            raise I2LError(
                f"expected as many levels in both halves of the VAE, got {len(self.encoder)} and "
                f"{len(self.decoder)}; choose its file"
            )

    @property
    def cell(self) -> int:
        """Pixels on a side of one place of the latent."""
        return 2 ** (len(self.encoder) - 1)


def _norm(width: int, groups: int, ops, **kind) -> nn.Module:
    return ops.GroupNorm(groups or (32 if width % 32 == 0 else 24), width, eps=_EPS, **kind)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int, ops, **kind) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups, ops, **kind)
        self.conv1 = ops.Conv2d(inputs, outputs, 3, padding=1, **kind)
        self.norm2 = _norm(outputs, groups, ops, **kind)
        self.conv2 = ops.Conv2d(outputs, outputs, 3, padding=1, **kind)
        self.nin_shortcut = ops.Conv2d(inputs, outputs, 1, **kind) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Middle(nn.Module):
    def __init__(self, width: int, groups: int, ops, **kind) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width, groups, ops, **kind)
        self.block_2 = ResBlock(width, width, groups, ops, **kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Downsample(nn.Module):
    def __init__(self, width: int, ops, **kind) -> None:
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2, **kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int, ops, **kind) -> None:
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1, **kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, and a change of size unless it is at the end."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, ops, **kind) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(inputs if i == 0 else outputs, outputs, groups, ops, **kind) for i in range(blocks)
        )
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        change = self.downsample or self.upsample
        return x if change is None else change(x)


class Encoder(nn.Module):
    def __init__(self, config: CoderConfig, ops, **kind) -> None:
        super().__init__()
        widths = (config.base, *config.encoder)
        self.conv_in = ops.Conv2d(3, config.base, 3, padding=1, **kind)
        self.down = nn.ModuleList()
        for i, width in enumerate(config.encoder):
            level = Level(widths[i], width, config.res_blocks, config.groups, ops, **kind)
            if i + 1 < len(config.encoder):
                level.downsample = Downsample(width, ops, **kind)
            self.down.append(level)
        self.mid = Middle(widths[-1], config.groups, ops, **kind)
        self.norm_out = _norm(widths[-1], config.groups, ops, **kind)
        self.conv_out = ops.Conv2d(widths[-1], config.bits, 3, padding=1, **kind)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.conv_in(pictures)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: CoderConfig, ops, **kind) -> None:
        super().__init__()
        widths = (*config.decoder, config.decoder[-1])
        self.conv_in = ops.Conv2d(config.bits, widths[-1], 3, padding=1, **kind)
        self.mid = Middle(widths[-1], config.groups, ops, **kind)
        self.up = nn.ModuleList()
        for i, width in enumerate(config.decoder):
            level = Level(widths[i + 1], width, config.res_blocks + 1, config.groups, ops, **kind)
            if i > 0:
                level.upsample = Upsample(width, ops, **kind)
            self.up.append(level)
        self.norm_out = _norm(widths[0], config.groups, ops, **kind)
        self.conv_out = ops.Conv2d(widths[0], 3, 3, padding=1, **kind)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Coder(nn.Module):
    """Pictures (B, 3, H, W) from -1 to 1 <-> latents (B, bits, H / cell, W / cell). What is decoded is a sum of codes,
    F_S of bits.py; what is encoded is not quantised yet."""

    def __init__(
        self,
        config: CoderConfig,
        ops=nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops, device=device, dtype=dtype)
        self.decoder = Decoder(config, ops, device=device, dtype=dtype)

    def encode(self, pictures: Tensor) -> Tensor:
        """Raises I2LError for a size that the cells do not divide."""
        cell = self.config.cell
        if pictures.shape[-2] % cell or pictures.shape[-1] % cell:
            raise I2LError(
                f"expected a height and a width in multiples of {cell}, got "
                f"{pictures.shape[-2]} and {pictures.shape[-1]}; resize or crop the picture"
            )
        return self.encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        """Raises I2LError for another number of channels."""
        if latents.shape[1] != self.config.bits:
            raise I2LError(
                f"expected a latent of {self.config.bits} channels, got {latents.shape[1]}; "
                "use the LATENT and the VAE of one Infinity model"
            )
        return self.decoder(latents).clamp(-1, 1)

    def preview(self, latents: Tensor, drawn: int) -> Tensor:
        """A small picture of a latent of which `drawn` places a side are drawn so far, in its colours, for a fraction
        of the work of `decode`: it is brought to as many places by their means, 8 at least and 16 at most."""
        height, width = latents.shape[-2:]
        share = min(1.0, max(PREVIEW_PLACES[0], min(PREVIEW_PLACES[1], drawn)) / max(height, width))
        size = (max(1, round(height * share)), max(1, round(width * share)))
        return self.decode(F.interpolate(latents, size=size, mode="area"))
