"""Bits, codes and features, against a plain loop over places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import as_tokens, check_bits, codes, features, resized
from i2l.i2l_core.infinity.scales import Scales

SQUARE = Scales(((1, 1), (2, 2), (4, 4), (6, 6)), (6, 6))
TALL = Scales(((1, 1), (3, 2), (4, 3)), (8, 6))


@pytest.mark.parametrize("patchify", [False, True])
def test_codes_have_length_one_and_their_tokens_give_the_bits_back(patchify: bool) -> None:
    bits = torch.rand(2, 12, 8) < 0.5
    code = codes(bits, (4, 3), patchify)
    assert code.shape == ((2, 2, 8, 6) if patchify else (2, 8, 4, 3))
    torch.testing.assert_close(code.norm(dim=1), torch.ones(2, *code.shape[-2:]))
    assert torch.equal(as_tokens(code, patchify) > 0, bits)


def test_a_token_of_two_by_two_places_is_channel_major() -> None:
    bits = torch.zeros(1, 1, 8, dtype=torch.bool)
    bits[0, 0, 4 + 2] = True  # second channel, lower left
    code = codes(bits, (1, 1), True)
    assert code.gt(0).nonzero().tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize(("scales", "patchify"), [(SQUARE, False), (TALL, False), (TALL, True)])
def test_features_are_the_sums_of_their_codes_and_leave_what_the_next_scale_reads(
    scales: Scales, patchify: bool
) -> None:
    cells = scales.cells(patchify)
    latent = torch.randn(2, 5, *cells[-1])
    found = features(latent, scales, patchify)
    total = torch.zeros_like(latent)
    for i, (sums, bits) in enumerate(zip(found.sums, found.bits, strict=True)):
        left = latent - total
        coarse = F.adaptive_avg_pool2d(left, cells[i])
        sign = torch.where(coarse > 0, 1.0, -1.0) / 5**0.5
        total = total + (sign if cells[i] == cells[-1] else F.interpolate(sign, cells[-1], mode="bilinear"))
        torch.testing.assert_close(sums, total, atol=1e-6, rtol=0)
        torch.testing.assert_close(codes(bits, scales.maps[i], patchify), sign)
    check_bits(found.bits, scales, 20 if patchify else 5)


def test_a_zero_is_the_bit_0_and_a_map_of_the_right_size_is_not_touched() -> None:
    assert not features(torch.zeros(1, 4, 6, 6), SQUARE, False).bits[0].any()
    latent = torch.randn(1, 4, 6, 6)
    assert resized(latent, (6, 6)) is latent


def test_bad_latents_and_bits_are_refused_in_one_sentence() -> None:
    with pytest.raises(I2LError, match="latent of 6 x 6 places, got 6 x 5"):
        features(torch.zeros(1, 4, 6, 5), SQUARE, False)
    with pytest.raises(I2LError, match="finite"):
        features(torch.full((1, 4, 6, 6), torch.nan), SQUARE, False)
    bits = features(torch.randn(1, 4, 6, 6), SQUARE, False).bits
    with pytest.raises(I2LError, match="4 tokens of 8 bits at scale 2"):
        check_bits([torch.ones(1, 1, 8), bits[1]], SQUARE, 8)
    with pytest.raises(I2LError, match="at most 4 scales, got 5"):
        check_bits([*bits, bits[3]], SQUARE, 4)
