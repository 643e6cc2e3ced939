"""Sizes, angles and singular values of low-rank changes, against dense matrices in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing.spectrum import cosine, directions, energy, inner, inner_by_weight, spectrum

SIZES = st.integers(1, 8)
ZERO = LowRank(torch.zeros(2, 3), torch.zeros(4, 2))


def layer(k: int, d_in: int, d_out: int, dtype=torch.float64) -> LowRank:
    return LowRank(torch.randn(k, d_in, dtype=dtype), torch.randn(d_out, k, dtype=dtype))


def close(actual, expected, limit: float = 1e-10) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected).double(),
        rtol=limit,
        atol=limit,
    )


@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 999))
@settings(deadline=None, max_examples=50)
def test_layers_against_dense_matrices(k, other_k, d_in, d_out, seed):
    torch.manual_seed(seed)
    a, b = layer(k, d_in, d_out), layer(other_k, d_in, d_out)
    dense_a, dense_b = a.delta(), b.delta()
    close(inner(a, b), (dense_a * dense_b).sum())
    close(energy(a), dense_a.square().sum())
    close(cosine(a, b), torch.nn.functional.cosine_similarity(dense_a.flatten(), dense_b.flatten(), 0))
    values = torch.linalg.svdvals(dense_a)[:k]
    found = spectrum(a)
    assert found.shape == (k,)
    close(found[: len(values)], values, 1e-6)  # values near zero are known to 1e-7 of the largest
    assert not found[len(values) :].any()
    close(found.square().sum(), energy(a))


def test_angles_that_are_known():
    a = layer(3, 5, 6)
    close(cosine(a, a), 1.0)
    close(cosine(a, a.scaled(-0.25)), -1.0)
    apart = LowRank(torch.eye(2, 6, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64))
    close(cosine(apart, LowRank(torch.eye(6, dtype=torch.float64)[2:4], apart.up)), 0.0)
    assert cosine(ZERO, ZERO) == cosine(ZERO, layer(1, 3, 4)) == 0


def test_loras_add_up_over_weights_and_meet_on_the_rows_they_share():
    dtype = torch.float64
    a = LoRA(
        {
            Target("x", (0, 4)): layer(2, 3, 4),
            Target("x", (4, 2)): layer(1, 3, 2),
            Target("y"): layer(2, 5, 3),
        }
    )
    b = LoRA({Target("x"): layer(3, 3, 6), Target("x", (2, 3)): layer(1, 3, 3), Target("z"): layer(1, 2, 2)})
    dense_a = torch.cat([a.layers[Target("x", rows)].delta() for rows in ((0, 4), (4, 2))])
    dense_b = b.layers[Target("x")].delta().clone()
    dense_b[2:5] += b.layers[Target("x", (2, 3))].delta()
    found = inner_by_weight(a, b)
    assert found.keys() == {"x", "y", "z"}
    close(found["x"], (dense_a * dense_b).sum())
    assert found["y"] == found["z"] == 0
    close(energy(b), dense_b.square().sum() + energy(b.layers[Target("z")]))
    close(cosine(a, b), found["x"] / (energy(a) * energy(b)).sqrt())
    assert all(product.dtype is dtype for product in found.values())


def test_loras_for_models_of_other_sizes_are_refused():
    a, b = (LoRA({Target("x"): layer(2, d_in, 6)}) for d_in in (3, 4))
    with pytest.raises(
        I2LError, match=r"different base models: a layer of x is 6x3 in one and 6x4 in the other"
    ):
        inner_by_weight(a, b)
    with pytest.raises(I2LError, match=r"6x3 in one and 5x3 in the other"):
        cosine(a, LoRA({Target("x"): layer(1, 3, 5)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_widened_first(dtype):
    a, b = layer(4, 300, 200, dtype), layer(2, 300, 200, dtype)
    assert inner(a, b).dtype is spectrum(a).dtype is torch.float64
    wide_a, wide_b = a.to(dtype=torch.float64), b.to(dtype=torch.float64)
    close(energy(a), energy(wide_a), 1e-5)
    close(cosine(a, b), cosine(wide_a, wide_b), 1e-5)
    close(spectrum(a), spectrum(wide_a), 1e-5)


@pytest.mark.parametrize("same", [False, True], ids=["zero", "equal"])
def test_gradients_are_finite_everywhere(same: bool):
    a = layer(2, 3, 4) if same else LowRank(torch.zeros(2, 3).double(), torch.zeros(4, 2).double())
    factors = [factor.clone().requires_grad_() for factor in (a.down, a.up)]
    changed = LowRank(*factors)
    (energy(changed) + cosine(changed, a) + cosine(changed, layer(1, 3, 4)) + inner(changed, a)).backward()
    for factor in factors:
        assert factor.grad is not None
        assert factor.grad.isfinite().all()


def test_directions_are_the_singular_ones_even_where_factors_depend_on_each_other():
    """Columns of `up` repeated, rows of `down` repeated: the Gram matrices are singular."""
    up, down = torch.randn(3, 9, 2, dtype=torch.float64), torch.randn(3, 2, 7, dtype=torch.float64)
    up, down = torch.cat([up, up], 2), torch.cat([down, -0.5 * down], 1)
    found = directions(up, down)
    dense = up @ down
    u, s, v = torch.linalg.svd(dense)
    assert not found.values[:, 2:].any()
    close(found.values[:, :2], s[:, :2])
    for r in (1, 2):
        best = u[:, :, :r] * s[:, None, :r] @ v[:, :r]
        close((up @ found.left[..., :r]) @ (found.right[:, :r] @ down), best)
    sides = (up @ found.left[..., :1]).norm(dim=(1, 2)), (found.right[:, :1] @ down).norm(dim=(1, 2))
    close(sides[0], sides[1])  # the root of the singular value on each
