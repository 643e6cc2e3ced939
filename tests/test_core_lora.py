"""The algebra of LoRA values, on full tensors in fp64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target, to_whole_weights

SIZES = st.integers(1, 9)


def low_rank(k: int, d_in: int, d_out: int, seed: int = 0) -> LowRank:
    """Random integers as fp64, so that sums and products are exact."""
    gen = torch.Generator().manual_seed(seed)
    down = torch.randint(-8, 9, (k, d_in), generator=gen).double()
    return LowRank(down, torch.randint(-8, 9, (d_out, k), generator=gen).double())


@st.composite
def fused_weights(draw):
    """One weight of `d_out` rows and layers on slices of it that may leave gaps, touch or overlap."""
    d_in, d_out = draw(SIZES), draw(st.integers(2, 16))
    layers = {}
    for seed in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, d_out - 1))
        length = draw(st.integers(1, d_out - start))
        layers[Target("block.qkv", (start, length))] = low_rank(draw(SIZES), d_in, length, seed)
    if draw(st.booleans()):
        layers[Target("block.qkv")] = low_rank(draw(SIZES), d_in, d_out, seed=9)
    return d_out, layers


@given(SIZES, SIZES, SIZES, st.integers(-16, 16))
def test_scaled_scales_the_delta_exactly(k, d_in, d_out, quarters):
    layer = low_rank(k, d_in, d_out)
    strength = quarters / 4
    assert torch.equal(layer.scaled(strength).delta(), strength * (layer.up @ layer.down))
    assert torch.equal(layer.scaled(strength).down, layer.down)


@given(fused_weights())
@settings(deadline=None)
def test_whole_weights_equals_dense_placement(case):
    d_out, layers = case
    lora = LoRA(layers, base_model="z-image", predictor="p", references=("a", "b"))
    fused = to_whole_weights(lora, {"block.qkv": d_out})

    dense = torch.zeros(d_out, next(iter(layers.values())).d_in, dtype=torch.float64)
    for target, layer in layers.items():
        start, length = target.rows or (0, d_out)
        dense[start : start + length] += layer.up @ layer.down

    (only,) = fused.layers.values()
    assert list(fused.layers) == [Target("block.qkv")]
    assert torch.equal(only.delta(), dense)
    assert only.rank == sum(layer.rank for layer in layers.values())
    assert (fused.base_model, fused.predictor, fused.references) == ("z-image", "p", ("a", "b"))


def test_whole_weights_leaves_whole_weights_alone():
    layer = low_rank(2, 3, 4)
    fused = to_whole_weights(LoRA({Target("out"): layer}), {})
    assert fused.layers[Target("out")] is layer


@pytest.mark.parametrize(
    ("layers", "widths", "message"),
    [
        ({Target("w", (0, 4)): low_rank(2, 3, 4)}, {}, "number of rows is not known"),
        ({Target("w", (0, 4)): low_rank(2, 3, 4)}, {"w": 3}, "does not fit the 3 rows"),
        ({Target("w"): low_rank(2, 3, 4), Target("w", (0, 2)): low_rank(1, 3, 2)}, {"w": 6}, "does not fit"),
        (
            {Target("w", (0, 2)): low_rank(2, 3, 2), Target("w", (2, 2)): low_rank(1, 5, 2)},
            {"w": 4},
            "inputs differ",
        ),
    ],
)
def test_whole_weights_refuses_what_does_not_fit(layers, widths, message):
    with pytest.raises(I2LError, match=message):
        to_whole_weights(LoRA(layers), widths)


def test_whole_weights_keeps_the_gradient():
    up = torch.randn(2, 1, requires_grad=True)
    fused = to_whole_weights(LoRA({Target("w", (1, 2)): LowRank(torch.ones(1, 3), up)}), {"w": 4})
    fused.layers[Target("w")].delta().sum().backward()
    assert up.grad is not None
    assert torch.equal(up.grad, torch.full((2, 1), 3.0))


@pytest.mark.parametrize(
    ("down", "up", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), "ranks .* differ"),
        (torch.zeros(2, 3, 1), torch.zeros(4, 2), "needs matrices"),
        (torch.zeros(3), torch.zeros(4, 2), "needs matrices"),
        (torch.zeros(0, 3), torch.zeros(4, 0), "empty"),
        (torch.zeros(2, 3).int(), torch.zeros(4, 2).int(), "floating point"),
        (torch.zeros(2, 3).half(), torch.zeros(4, 2), "floating point type"),
        (torch.zeros(2, 3), torch.zeros(4, 2, device="meta"), "split over devices"),
    ],
)
def test_low_rank_refuses_what_is_no_layer(down, up, message):
    with pytest.raises(I2LError, match=message):
        LowRank(down, up)


def test_low_rank_tells_its_sizes():
    layer = low_rank(2, 3, 5)
    assert (layer.rank, layer.d_in, layer.d_out, tuple(layer.delta().shape)) == (2, 3, 5, (5, 3))


def test_targets_sort_and_read_well():
    targets = [Target("b"), Target("a", (4, 2)), Target("a"), Target("a", (0, 4))]
    assert [str(target) for target in sorted(targets)] == ["a", "a[0:4]", "a[4:6]", "b"]
    assert len({Target("a", (0, 4)), Target("a", (0, 4))}) == 1


@pytest.mark.parametrize(("weight", "rows"), [("", None), ("a", (-1, 2)), ("a", (0, 0))])
def test_target_refuses(weight, rows):
    with pytest.raises(I2LError):
        Target(weight, rows)


def test_lora_is_immutable_and_does_not_share_the_callers_dict():
    layers = {Target("a"): low_rank(2, 3, 4)}
    lora = LoRA(layers)
    layers[Target("b")] = low_rank(1, 1, 1)
    assert lora.n_layers == 1
    with pytest.raises(TypeError):
        lora.layers[Target("b")] = low_rank(1, 1, 1)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        lora.base_model = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_lora_algebra_returns_new_values():
    lora = LoRA(
        {Target("a"): low_rank(2, 3, 4), Target("b"): low_rank(5, 3, 4)}, base_model="m", references=("r",)
    )
    before = {target: layer.up.clone() for target, layer in lora.layers.items()}
    half = lora.scaled(0.5).to(dtype=torch.float32)
    assert lora.rank == 5
    assert (half.base_model, half.references) == ("m", ("r",))
    for target, layer in lora.layers.items():
        assert torch.equal(layer.up, before[target])
        assert half.layers[target].up.dtype is torch.float32
        assert torch.equal(half.layers[target].delta().double(), 0.5 * layer.delta())


def test_lora_refuses_no_layers_and_wrong_rows():
    with pytest.raises(I2LError, match="at least one layer"):
        LoRA({})
    with pytest.raises(I2LError, match=r"a\[0:5\]: the target has 5 rows, the LoRA layer 4"):
        LoRA({Target("a", (0, 5)): low_rank(1, 2, 4)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_are_named(bad):
    lora = LoRA({Target("a"): low_rank(1, 2, 3)})
    lora.check_finite()
    with pytest.raises(I2LError, match="finite number"):
        lora.scaled(bad)
    up = torch.zeros(3, 1)
    up[1, 0] = bad
    with pytest.raises(I2LError, match=r"layer of b\[3:6\] holds NaN"):
        LoRA({Target("b", (3, 3)): LowRank(torch.zeros(1, 2), up)}).check_finite()
