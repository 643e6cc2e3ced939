"""Products that differ by row equal one dense product per row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.grouped_lora import stack
from i2l.i2l_core.lora import LowRank


def layer(d_in: int, d_out: int, rank: int, dtype=torch.float64) -> LowRank:
    return LowRank(torch.randn(rank, d_in, dtype=dtype), torch.randn(d_out, rank, dtype=dtype))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_equals_a_dense_delta_per_row(data):
    sizes = st.integers(1, 6)
    d_in, d_out, per_group, tokens = (data.draw(sizes) for _ in range(4))
    torch.manual_seed(data.draw(st.integers(0, 999)))
    strengths = st.sampled_from([-1.5, 0.25, 1.0])
    group = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), strengths), max_size=3)
    chosen = data.draw(st.lists(group, min_size=1, max_size=4).filter(any))
    groups = [[(number, layer(d_in, d_out, rank), s) for number, rank, s in part] for part in chosen]
    products = stack(groups, "cpu", torch.float64)
    assert products is not None
    vectors = data.draw(st.booleans())  # as modulation has: no tokens
    shape = (len(groups) * per_group,) if vectors else (len(groups) * per_group, tokens)
    x, out = torch.randn(*shape, d_in).double(), torch.randn(*shape, d_out).double()
    gated = data.draw(st.booleans())
    weights = torch.rand(*shape, 4).double()  # of each LoRA, by token

    expected = out.clone()
    for row in range(shape[0]):
        for number, low_rank, strength in groups[row // per_group]:
            weight = weights[row, ..., number, None] if gated else 1.0
            expected[row] += weight * strength * (x[row] @ low_rank.delta().T)

    gate = None
    if gated:
        index = torch.tensor(products.lora_index).clamp(min=0)  # filling may have any weight
        per_row = weights.view(len(groups), -1, 4)
        gate = torch.stack([per_row[g][:, index[g]] for g in range(len(groups))])
    actual = products.add_to(out, x, gate)
    assert actual.data_ptr() == out.data_ptr()  # in place
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_flow_and_nothing_is_written(groups):
    low_rank = layer(3, 4, 2)
    products = stack([[(0, low_rank, 0.5)]] * groups, "cpu", torch.float64)
    assert products is not None
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    out = torch.randn(2, 5, 4, dtype=torch.float64)
    before = out.clone()
    products.add_to(out, x).sum().backward()
    assert torch.equal(out, before)
    torch.testing.assert_close(x.grad, (0.5 * low_rank.delta()).sum(0).expand(2, 5, 3))


def test_lower_ranks_are_filled_with_zeros():
    products = stack(
        [[(0, layer(3, 4, 1), 1.0)], [(1, layer(3, 4, 2), 1.0), (2, layer(3, 4, 1), 1.0)]],
        "cpu",
        torch.float32,
    )
    assert products is not None
    assert products.lora_index == ((0, -1, -1), (1, 1, 2))
    assert not products.down[0, :, 1:].any()
    assert not products.up[0, 1:].any()


def test_nothing_acts():
    assert stack([[], []], "cpu", torch.float32) is None


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(I2LError, match="differ in"):
        stack([[(0, layer(3, 4, 1), 1.0), (1, layer(3, 5, 1), 1.0)]], "cpu", torch.float32)
    products = stack([[(0, layer(3, 4, 1), 1.0)]] * 2, "cpu", torch.float64)
    assert products is not None
    with pytest.raises(I2LError, match="3 batch rows cannot be split into 2"):
        products.add_to(torch.zeros(3, 4).double(), torch.zeros(3, 3).double())
