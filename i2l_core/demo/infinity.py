"""The demo world's Infinity: the released networks at a small size, for pictures of 128 x 128.

It reads the prompts that the demo's diffusion model reads, through the same text encoder.
"""

from __future__ import annotations

from ..infinity.coder import CoderConfig
from ..infinity.config import InfinityConfig
from ..infinity.scales import Scales
from .prompts import TOKENS
from .text import WIDTH

BITS = 32

# The first four maps are those of the released models, the last has cells of 16 pixels as theirs. It comes three times:
# with 5 x 5, 6 x 6, 7 x 7 in its place a picture of so few cells would be restored much worse
SCALES = Scales(((1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (8, 8), (8, 8)), (8, 8))

# With 32 groups of 32 channels each channel would be normalised alone, and a picture's colours would be lost in it
CODER = CoderConfig(
    bits=BITS, base=32, encoder=(32, 32, 64, 64, 96), decoder=(32, 32, 64, 64, 96), res_blocks=1, groups=4
)

TRANSFORMER = InfinityConfig(
    width=160,
    depth=8,
    heads=5,
    token_bits=BITS,
    text_width=WIDTH,
    text_length=TOKENS,
    levels=15,
    pool_heads=5,
    hidden=640,
    patchify=False,
)
