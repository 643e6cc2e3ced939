"""A LoRA limited to parts of a network: every layer gets the strength that its place says, exactly."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch

from i2l.i2l_core.base_models import find_model
from i2l.i2l_core.base_models.places import position_of
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing.block_weights import PRESETS, PROJECTIONS, BlockWeights, apply_block_weights
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


def q_and_k_rows(model_id: str, target: Target, d_out: int) -> torch.Tensor:
    """(d_out,) true for rows of q and k, by the names of the reference implementation."""
    model = find_model(model_id)
    assert model is not None
    found = torch.zeros(d_out, dtype=torch.bool)
    for rule in model.architecture.rules:
        if not re.fullmatch(re.escape(rule.weight).replace(r"\{\}", r"\d+"), target.weight):
            continue
        at, of = rule.part or (0, 1)
        start, size = at * d_out // of, d_out // of
        if re.search(r"(to|self_attn\.|add)_?[qk](_proj)?$", rule.name):
            found[start : start + size] = True
        elif re.search(r"\.qkv$", rule.name):
            found[: 2 * d_out // 3] = True
        elif rule.name.endswith("to_qkv_mlp_proj"):
            found[: 2 * d_out // 9] = True
    return found


def test_without_q_and_k_their_rows_are_zero_and_all_others_the_same(lora: LoRA):
    changed = apply_block_weights(lora, replace(BlockWeights(), **PROJECTIONS["without q and k"]))
    without, rows = 0, 0
    for target, layer in lora.layers.items():
        gone = q_and_k_rows(lora.base_model, target, layer.d_out)
        without, rows = without + int(gone.sum()), rows + layer.d_out
        if gone.all():
            assert target not in changed.layers
            continue
        after = changed.layers[target].delta()
        assert torch.equal(after[gone], torch.zeros_like(after[gone]))
        assert torch.equal(after[~gone], layer.delta()[~gone])
        assert changed.layers[target].down is layer.down
        if not gone.any():
            assert changed.layers[target] is layer
    assert 0.05 * rows < without < rows / 2


def test_projections_add_up_to_the_whole(lora: LoRA):
    """With the MLP and the rest in the first; also in layers that hold several projections, and the MLP."""
    attention = BlockWeights(mlp=0.0, other=0.0, q=0.0, k=0.0, v=0.0, out=0.0)
    parts = [
        apply_block_weights(lora, each)
        for each in (
            BlockWeights(attention=0.0),
            *(replace(attention, **{name: 1.0}) for name in ("q", "k", "v", "out")),
        )
    ]
    for target, layer in lora.layers.items():
        torch.testing.assert_close(sum(delta(part, target) for part in parts), layer.delta())


def test_projections_multiply_with_attention_stream_and_depth(lora: LoRA):
    where = BlockWeights(0.5, 0.25, 2.0, 3.0, 4.0, Curve(((0.0, 1.0), (1.0, 2.0))))
    plain = apply_block_weights(lora, where)
    changed = apply_block_weights(lora, replace(where, q=2.0, k=2.0))
    for target, layer in plain.layers.items():
        scale = 1 + q_and_k_rows(lora.base_model, target, layer.d_out).double()
        torch.testing.assert_close(delta(changed, target), layer.delta() * scale[:, None])


def test_projections_of_part_of_the_rows():
    """LoRAs from files have q, k and v apart."""
    size = 12
    for at, kept in ((0, False), (size, False), (2 * size, True)):
        target = Target("layers.0.attention.qkv", (at, size))
        layer = LowRank(torch.randn(2, size), torch.randn(size, 2))
        other = Target("layers.0.feed_forward.w1")
        lora = LoRA({target: layer, other: layer})
        changed = apply_block_weights(lora, BlockWeights(q=0.0, k=0.0))
        assert (target in changed.layers) == kept
        assert changed.layers[other] is layer
    target = Target("layers.0.attention.qkv", (size, 2 * size))
    layer = LowRank(torch.randn(2, size), torch.randn(2 * size, 2))
    after = apply_block_weights(LoRA({target: layer}), BlockWeights(q=0.0, k=0.0)).layers[target].delta()
    assert torch.equal(after[:size], torch.zeros(size, size))
    assert torch.equal(after[size:], layer.delta()[size:])


def test_rows_of_a_layer_that_joins_attention_and_mlp():
    """FLUX.2 files with q, k, v or the MLP's rows of linear1 apart give what the whole layer gives in these rows."""
    size, name = 12, "single_blocks.0.linear1"
    down, up = torch.randn(2, size), torch.randn(9 * size, 2)
    other = Target("img_in")
    for where in (
        BlockWeights(q=0.0, k=0.0),
        BlockWeights(0.5, 2.0, v=0.0),
        BlockWeights(attention=0.0),
        BlockWeights(mlp=0.0),
    ):
        whole = apply_block_weights(
            LoRA({Target(name): LowRank(down, up), other: LowRank(down, up)}), where
        ).layers[Target(name)]
        for start, count in ((0, 1), (1, 1), (2, 1), (0, 3), (1, 5), (3, 6)):
            rows = slice(start * size, (start + count) * size)
            target, layer = Target(name, (rows.start, count * size)), LowRank(down, up[rows])
            changed = apply_block_weights(LoRA({target: layer, other: layer}), where)
            expected = whole.delta()[rows]
            assert (target in changed.layers) == bool(expected.any())
            if target in changed.layers:
                torch.testing.assert_close(changed.layers[target].delta(), expected)
    beyond = LoRA({Target(name, (9 * size, size)): LowRank(down, up[:size])})
    with pytest.raises(I2LError, match="joins attention and MLP in an unknown way"):
        apply_block_weights(beyond, BlockWeights(q=0.0, k=0.0))


@pytest.mark.parametrize(
    ("target", "d_out"),
    [
        (Target("layers.0.attention.qkv"), 5 * 12 // 3),  # Lumina 2 has fewer rows of k and v
        (Target("layers.0.attention.qkv", (12, 4)), 4),
        (Target("layers.0.attention.qkv", (6, 12)), 12),
        (Target("blocks.0.attention.w1q"), 12),
    ],
)
def test_projections_that_are_not_known_are_refused(target: Target, d_out: int):
    lora = LoRA({target: LowRank(torch.randn(2, 12), torch.randn(d_out, 2))})
    with pytest.raises(I2LError, match="the rows of q, k and v in this attention layer are not known"):
        apply_block_weights(lora, BlockWeights(q=0.0, k=0.0))
    assert apply_block_weights(lora, BlockWeights(0.5, q=0.5, k=0.5, v=0.5, out=0.5)).n_layers == 1


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
    rows = Target("single_blocks.0.linear1", (0, 8))
    part = LoRA({rows: LowRank(torch.randn(2, 12), torch.randn(8, 2))})
    with pytest.raises(I2LError, match="in an unknown way; set attention and mlp"):
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


def test_strengths_that_make_a_layer_infinite_are_refused(lora: LoRA):
    with pytest.raises(I2LError, match=r"these strengths make .* infinite; set smaller ones"):
        apply_block_weights(lora.to(dtype=torch.float32), BlockWeights(attention=1e38, q=1e38))
    with pytest.raises(I2LError, match="strength must be a finite number, got a number of more than 64 bits"):
        BlockWeights(mlp=10**400)
