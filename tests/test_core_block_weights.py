"""A LoRA limited to parts of a network: every layer gets the strength that its place says, exactly."""

from __future__ import annotations

import itertools

import pytest
import torch

from i2l.i2l_core.base_models import find_model
from i2l.i2l_core.base_models.places import position_of
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing.block_weights import PRESETS, BlockWeights, apply_block_weights
from i2l.i2l_core.schedule import Curve

BLOCKS = 6  # of each run that are enough to tell depths apart


def lora_for(model) -> LoRA:
    """On the host's whole weights of the first blocks, at a 32nd of the size, in fp64."""
    layers = {}
    for name, (d_out, d_in) in model.weights().items():
        if position_of(name).index < BLOCKS:
            d_out, d_in = max(12, d_out // 32), max(12, d_in // 32)
            layer = LowRank(torch.randn(2, d_in).double(), torch.randn(d_out, 2).double())
            layers[Target(name.removesuffix(".weight"))] = layer
    return LoRA(layers, model.id, "p", ("r",))


@pytest.fixture(params=["z-image", "flux2-klein-4b", "hidream-o1", "qwen-image"])
def lora(request: pytest.FixtureRequest) -> LoRA:
    model = find_model(request.param)
    assert model is not None
    return lora_for(model)


def delta(lora: LoRA, target: Target) -> torch.Tensor | float:
    return lora.layers[target].delta() if target in lora.layers else 0.0


def test_everywhere_is_the_same_lora(lora: LoRA):
    same = apply_block_weights(lora, BlockWeights())
    assert same.layers.keys() == lora.layers.keys()
    assert all(same.layers[target] is layer for target, layer in lora.layers.items())
    assert (same.base_model, same.predictor, same.references) == (lora.base_model, "p", ("r",))


def test_every_kind_and_stream_has_its_strength(lora: LoRA):
    where = BlockWeights(attention=2.0, mlp=0.5, other=-1.0, image=3.0, text=0.25)
    changed = apply_block_weights(lora, where)
    by_kind = {"attention": 2.0, "MLP": 0.5}
    for target in lora.layers:
        place = position_of(target.weight)
        common = {"image": 3.0, "text": 0.25}.get(place.stream, 1.0)
        before = lora.layers[target].delta()
        if place.kind == "attention + MLP":
            rows = target.weight.endswith("linear1")
            first = before.shape[0] // 3 if rows else before.shape[1] // 4
            scale = torch.full((before.shape[0 if rows else 1],), 0.5).double()
            scale[:first] = 2.0
            expected = before * (scale[:, None] if rows else scale) * common
        else:
            expected = before * common * by_kind.get(place.kind, -1.0)
        torch.testing.assert_close(delta(changed, target), expected)


def test_depth_goes_from_the_first_block_to_the_last(lora: LoRA):
    changed = apply_block_weights(lora, BlockWeights(depth=Curve(((0.0, 1.0), (1.0, 2.0)))))
    found: dict[tuple, set[float]] = {}
    for target in lora.layers:
        place = position_of(target.weight)
        strength = round(float((changed.layers[target].up / lora.layers[target].up).median()), 4)
        if place.blocks:
            found.setdefault((place.order[0], place.index), set()).add(strength)
        else:
            assert strength == 1
    strengths = [found[key] for key in sorted(found)]
    assert all(len(one) == 1 for one in strengths)
    flat = [one.pop() for one in strengths]
    assert flat == sorted(flat)
    assert (flat[0], flat[-1]) == (1, 2)
    steps = {round(b - a, 3) for a, b in itertools.pairwise(flat)}
    assert len(steps) <= 2  # even


def test_presets_part_the_network(lora: LoRA):
    """Early, middle and late blocks are all blocks, once; so are the kinds of layers."""
    everything = set(lora.layers)
    blocks = {target for target in everything if position_of(target.weight).blocks}
    thirds = [
        set(apply_block_weights(lora, PRESETS[name]).layers)
        for name in ("early blocks", "middle blocks", "late blocks")
    ]
    outside = everything - blocks
    assert set.union(*thirds) == everything
    for third in thirds:
        assert third & outside == outside
        assert third & blocks
    assert sum(len(third & blocks) for third in thirds) == len(blocks)
    kinds = [
        set(apply_block_weights(lora, PRESETS[name]).layers)
        for name in ("attention", "MLP", "modulation and ends")
    ]
    assert set.union(*kinds) == everything


def test_what_adds_up_is_the_whole(lora: LoRA):
    """Attention alone plus MLP alone plus the rest is the LoRA."""
    parts = [apply_block_weights(lora, PRESETS[name]) for name in ("attention", "MLP", "modulation and ends")]
    for target, layer in lora.layers.items():
        torch.testing.assert_close(sum(delta(part, target) for part in parts), layer.delta())


def test_rows_of_fused_weights_are_taken_too():
    rows = Target("layers.3.attention.qkv", (0, 12))
    lora = LoRA({rows: LowRank(torch.randn(2, 12), torch.randn(12, 2))}, "z-image")
    assert (
        apply_block_weights(lora, BlockWeights(attention=0.5))
        .layers[rows]
        .delta()
        .allclose(lora.layers[rows].delta() / 2)
    )


def test_a_lora_of_which_nothing_is_left_is_refused(lora: LoRA):
    with pytest.raises(I2LError, match="these strengths switch off all"):
        apply_block_weights(lora, BlockWeights(attention=0, mlp=0, other=0))
    with pytest.raises(I2LError, match="strength must be a finite number"):
        BlockWeights(attention=float("nan"))
    rows = Target("single_blocks.0.linear1", (0, 12))
    part = LoRA({rows: LowRank(torch.randn(2, 12), torch.randn(12, 2))})
    with pytest.raises(I2LError, match="in an unknown way; set attention and mlp to the same value"):
        apply_block_weights(part, BlockWeights(attention=0.5))
    assert apply_block_weights(part, BlockWeights(attention=0.5, mlp=0.5)).n_layers == 1


@pytest.mark.parametrize(
    ("weight", "d_out", "d_in"),
    [("single_blocks.0.linear1", 7 * 12, 12), ("single_blocks.0.linear2", 12, 5 * 12)],
)
def test_attention_and_mlp_are_not_told_apart_in_layers_of_other_sizes(weight: str, d_out: int, d_in: int):
    """FLUX.1 has layers of these names, with other parts."""
    lora = LoRA({Target(weight): LowRank(torch.randn(2, d_in), torch.randn(d_out, 2))})
    with pytest.raises(I2LError, match=r"this layer joins attention and MLP in an unknown way"):
        apply_block_weights(lora, BlockWeights(mlp=0.5))
    assert apply_block_weights(lora, BlockWeights(mlp=0.5, attention=0.5)).n_layers == 1
