"""The sizes of an Infinity transformer, read from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..checks import check_int, shown
from ..errors import I2LError

Shapes = Mapping[str, tuple[int, ...]]

# Largest sizes that are believed: some times those of the largest released model
_LIMITS = {"width": 16384, "depth": 256, "heads": 256, "token_bits": 1024, "hidden": 1 << 17}
_LIMITS |= {"text_width": 16384, "text_length": 4096, "levels": 64, "pool_heads": 256}
_PATCHIFIED_BITS = 56  # of the 8B: the one released width that means 2 x 2 places of 14 bits
_BLOCK = re.compile(r"(?:block_chunks\.(\d{1,6})\.module|blocks)\.(\d{1,6})\.")


@dataclass(frozen=True)
class InfinityConfig:
    """`token_bits`: bits that the transformer reads and writes for a token; with `patchify` they are 2 x 2 places of
    the picture coder. `text_length`: rows of the learned empty prompt. `levels`: the most scales.
    Raises I2LError for sizes that do not fit each other."""

    width: int
    depth: int
    heads: int
    token_bits: int
    text_width: int
    text_length: int
    levels: int
    pool_heads: int
    hidden: int
    patchify: bool = False

    def __post_init__(self) -> None:
        for name, largest in _LIMITS.items():
            check_int(name, getattr(self, name), largest)
        if self.width % (4 * self.heads):
            raise I2LError(
                f"expected a width that {self.heads} heads share in multiples of 4, got {self.width}; "
                "the file is damaged or of another model"
            )
        if self.width % self.pool_heads:
            raise I2LError(
                f"expected a width that {self.pool_heads} heads of the text pool share, got {self.width}; "
                "the file is damaged or of another model"
            )
        if self.patchify and self.token_bits % 4:
            raise I2LError(f"expected bits of 2 x 2 places, got {self.token_bits}; turn patchify off")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def bits(self) -> int:
        """Bits of one place of the picture coder."""
        return self.token_bits // 4 if self.patchify else self.token_bits

    @property
    def cell(self) -> int:
        """Pixels on a side of one place of the picture coder."""
        return 8 if self.patchify else 16

    @classmethod
    def from_shapes(cls, shapes: Shapes, patchify: bool | None = None) -> InfinityConfig:
        """Sizes from the released names. `patchify` None: as the released file of that width has it.
        Raises I2LError for a missing name or a shape of the wrong number of dimensions, by name."""

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            found = shapes.get(name)
            if found is None:
                raise I2LError(f"expected an Infinity transformer, but {name} is missing; choose its file")
            if len(found) != dimensions:
                raise I2LError(f"expected {dimensions} dimensions of {name}, got {shown(str(tuple(found)))}")
            return tuple(found)

        blocks = {match.groups() for name in shapes if (match := _BLOCK.match(name))}
        if not blocks:
            raise I2LError("expected an Infinity transformer, but it has no blocks; choose its file")
        chunk, index = min(blocks, key=lambda key: (int(key[0] or 0), int(key[1])))
        block = f"blocks.{index}." if chunk is None else f"block_chunks.{chunk}.module.{index}."
        width, token_bits = shape("word_embed.weight", 2)
        text_length, text_width = shape("cfg_uncond", 2)
        return cls(
            width=width,
            depth=len(blocks),
            heads=shape(block + "sa.scale_mul_1H11", 4)[1],
            token_bits=token_bits,
            text_width=text_width,
            text_length=text_length,
            levels=shape("lvl_embed.weight", 2)[0],
            pool_heads=shape("text_proj_for_sos.ca.mat_q", 3)[1],
            hidden=shape(block + "ffn.fc1.weight", 2)[0],
            patchify=token_bits == _PATCHIFIED_BITS if patchify is None else patchify,
        )

    def check_coder(self, bits: int) -> None:
        """Raise I2LError unless a picture coder of so many bits belongs to this transformer."""
        if bits != self.bits:
            raise I2LError(
                f"this VAE writes {bits} bits, the model reads {self.bits}; load infinity_vae_d32reg.pth for "
                "infinity_2b_reg.pth, infinity_vae_d56_f8_14_patchify.pth for the 8B"
            )
