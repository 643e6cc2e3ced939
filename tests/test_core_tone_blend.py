"""Principal features and the blend of tones, against a plain singular value decomposition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.principal_features import decaying, largest, principal
from i2l.i2l_core.tone_blend import ToneSettings, blend_tone, coarse, tone_of


def by_svd(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    u, s, v = torch.linalg.svd(features.double(), full_matrices=False)
    return (u * (s * weights[: s.shape[-1]])[:, None]) @ v


@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 16, 5), (1, 8, 8), (3, 4, 1)])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 2.0])
def test_principal_is_the_weighted_decomposition(shape, alpha):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weights = decaying(alpha, min(shape[1:]))
    torch.testing.assert_close(
        principal(features, weights).double(), by_svd(features, weights), atol=1e-6, rtol=0
    )


def test_principal_of_all_components_is_the_map_and_of_few_is_idempotent():
    features = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(principal(features, decaying(0.0, 6)), features)
    once = principal(features, largest(2, 6))
    torch.testing.assert_close(principal(once, largest(2, 6)), once, atol=1e-6, rtol=1e-5)
    assert torch.linalg.matrix_rank(once.double(), rtol=1e-5).tolist() == [2, 2]


def latents(seed: int, batch: int = 1, size=(12, 16)) -> torch.Tensor:
    return torch.randn(batch, 5, *size, generator=torch.Generator().manual_seed(seed))


def test_strength_0_and_the_own_tone_change_nothing():
    x0, settings = latents(1), ToneSettings(grid=4)
    assert torch.equal(blend_tone(x0, tone_of([latents(2)], [1], settings), ToneSettings(0.0)), x0)
    torch.testing.assert_close(blend_tone(x0, tone_of([x0], [1], settings), settings), x0)


def test_grid_1_is_a_shift_of_the_mean():
    x0, other, settings = latents(1, 2), latents(2), ToneSettings(grid=1)
    shift = other.mean((2, 3), keepdim=True) - x0.mean((2, 3), keepdim=True)
    torch.testing.assert_close(blend_tone(x0, tone_of([other], [1], settings), settings), x0 + shift)


def test_alpha_0_asks_for_the_cells_of_the_reference():
    x0, other, settings = latents(1), latents(2), ToneSettings(grid=4, alpha=0.0)
    change = coarse(other, 4) - coarse(x0, 4)
    expected = x0 + F.interpolate(change, x0.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(blend_tone(x0, tone_of([other], [1], settings), settings), expected)


def test_rows_are_on_their_own_and_strength_is_linear():
    x0, settings = latents(1, 3), ToneSettings(0.5, 4)
    tone = tone_of([latents(2)], [1], settings)
    each = torch.cat([blend_tone(row[None], tone, settings) for row in x0])
    torch.testing.assert_close(blend_tone(x0, tone, settings), each)
    whole = blend_tone(x0, tone, ToneSettings(1.0, 4))
    torch.testing.assert_close(blend_tone(x0, tone, settings) - x0, (whole - x0) / 2)
    torch.testing.assert_close(
        blend_tone(x0, tone, ToneSettings(1.0, 4), 0.5), blend_tone(x0, tone, settings)
    )


def test_a_reference_given_twice_equals_weight_2_and_sizes_may_differ():
    settings = ToneSettings(grid=4)
    a, b = latents(1, size=(8, 20)), latents(2)
    torch.testing.assert_close(tone_of([a, a, b], [1, 1, 1], settings), tone_of([a, b], [2, 1], settings))


def test_what_is_too_small_or_out_of_range_is_refused():
    with pytest.raises(I2LError, match="a grid of 8 cells needs a larger reference: its latent has 4x4"):
        tone_of([latents(1, size=(4, 4))], [1], ToneSettings(grid=8))
    settings = ToneSettings(grid=8)
    with pytest.raises(I2LError, match="a grid of 8 cells needs a larger picture: its latent has 4x4"):
        blend_tone(latents(1, size=(4, 4)), tone_of([latents(2)], [1], settings), settings)
    for wrong in ({"grid": 0}, {"grid": 33}, {"strength": float("nan")}, {"alpha": -0.1}):
        with pytest.raises(I2LError):
            ToneSettings(**wrong)  # type: ignore[arg-type]
