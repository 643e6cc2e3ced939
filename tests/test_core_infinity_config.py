"""Sizes read from shapes, and rotary positions by complex numbers."""

from __future__ import annotations

import math

import pytest
import torch

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.config import InfinityConfig
from i2l.i2l_core.infinity.rope import rotate, rotation
from i2l.i2l_core.infinity.scales import scales_of


def released_shapes(
    width: int, depth: int, heads: int, bits: int, text: int, chunks: int
) -> dict[str, tuple[int, ...]]:
    pool = text // 128
    shapes: dict[str, tuple[int, ...]] = {
        "word_embed.weight": (width, bits),
        "cfg_uncond": (512, text),
        "lvl_embed.weight": (15, width),
        "text_proj_for_sos.ca.mat_q": (1, pool, width // pool),
    }
    for i in range(depth):
        each = depth // chunks
        block = f"blocks.{i}." if chunks == 0 else f"block_chunks.{i // each}.module.{i % each}."
        shapes[block + "sa.scale_mul_1H11"] = (1, heads, 1, 1)
        shapes[block + "ffn.fc1.weight"] = (4 * width, width)
    return shapes


@pytest.mark.parametrize(
    ("sizes", "head_width", "bits", "cell"),
    [
        ((2048, 32, 16, 32, 2048, 8), 128, 32, 16),
        ((3584, 40, 28, 56, 2048, 8), 128, 14, 8),
        ((768, 12, 8, 16, 2048, 4), 96, 16, 16),
    ],
)
def test_released_sizes(sizes: tuple[int, ...], head_width: int, bits: int, cell: int) -> None:
    config = InfinityConfig.from_shapes(released_shapes(*sizes))
    assert (config.width, config.depth, config.heads, config.token_bits) == sizes[:4]
    assert (config.head_width, config.bits, config.cell) == (head_width, bits, cell)
    assert (config.text_length, config.levels, config.pool_heads) == (512, 15, 16)
    config.check_coder(bits)
    with pytest.raises(I2LError, match=f"writes {bits + 2} bits, the model reads {bits}"):
        config.check_coder(bits + 2)


def test_patchify_is_read_from_the_width_unless_it_is_said() -> None:
    shapes = released_shapes(64, 4, 2, 32, 128, 2)
    assert not InfinityConfig.from_shapes(shapes).patchify
    assert InfinityConfig.from_shapes(shapes, patchify=True).bits == 8


def test_what_is_no_infinity_is_refused_by_name() -> None:
    shapes = released_shapes(64, 4, 2, 32, 128, 2)
    with pytest.raises(I2LError, match="no blocks"):
        InfinityConfig.from_shapes({"x": (3,)})
    with pytest.raises(I2LError, match=r"lvl_embed.weight is missing"):
        InfinityConfig.from_shapes({k: v for k, v in shapes.items() if k != "lvl_embed.weight"})
    with pytest.raises(I2LError, match=r"2 dimensions of word_embed.weight"):
        InfinityConfig.from_shapes({**shapes, "word_embed.weight": (64,)})
    with pytest.raises(I2LError, match="7 heads share"):
        InfinityConfig.from_shapes({**shapes, "block_chunks.0.module.0.sa.scale_mul_1H11": (1, 7, 1, 1)})
    with pytest.raises(I2LError, match="3 heads of the text pool"):
        InfinityConfig.from_shapes({**shapes, "text_proj_for_sos.ca.mat_q": (1, 3, 21)})
    with pytest.raises(I2LError, match="width must be a whole number from 1 to 16384"):
        InfinityConfig.from_shapes({**shapes, "word_embed.weight": (1 << 40, 32)})
    with pytest.raises(I2LError, match="2 x 2 places, got 30"):
        InfinityConfig.from_shapes({**shapes, "word_embed.weight": (64, 30)}, patchify=True)


@pytest.mark.parametrize(("ratio", "index"), [(1.0, 4), (1.5, 6), (0.571, 3)])
def test_rotation_turns_pairs_by_their_place_on_the_reference_map(ratio: float, index: int) -> None:
    scales = scales_of(ratio, "0.06M")
    (height, width), (full_height, full_width) = scales.maps[index], scales.reference
    x = torch.randn(2, 3, height * width, 32)
    turned = rotate(x, rotation(scales, index, 32))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (16, 2)).contiguous())
    for place in range(height * width):
        y_at = round(place // width * (full_height / height))
        x_at = round(place % width * (full_width / width))
        angles = [y_at * 10000 ** (-j / 8) for j in range(8)] + [x_at * 10000 ** (-j / 8) for j in range(8)]
        turn = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=torch.complex128)
        expected = torch.view_as_real(pairs[:, :, place] * turn).flatten(-2)
        torch.testing.assert_close(turned[:, :, place].double(), expected, atol=2e-5, rtol=0)
