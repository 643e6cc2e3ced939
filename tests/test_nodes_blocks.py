"""LoRA Blocks on the real host: presets, custom strengths and projections give the core's block weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import build, lora_for

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing.block_weights import PRESETS, BlockWeights, apply_block_weights
from i2l.i2l_core.schedule import Curve

STRENGTHS = {"attention": 0.5, "mlp": 2.0, "other": 0.25, "image": 3.0, "text": 0.75, "depth": "0: 1, 1: 0.5"}


@pytest.fixture(scope="module", params=["lumina2", "flux2"])
def lora(host, request: pytest.FixtureRequest) -> LoRA:
    return lora_for(build(request.param))


def run(lora: LoRA, preset: str, **more: str) -> tuple[dict[Target, LowRank], str]:
    """The layers that come out, and the text on the node; strengths as a workflow stores them."""
    from i2l.i2l_core.host.lora_model import PredictedLoRA, lora_of
    from i2l.nodes.blocks import LoRABlocks

    inputs: dict[str, Any] = {**STRENGTHS, **more}
    with torch.inference_mode():
        out = LoRABlocks.execute(PredictedLoRA(lora), preset, **inputs)
    assert out.args is not None
    assert out.ui is not None
    return dict(lora_of(out.args[0]).layers), out.ui.as_dict()["text"][0]


def assert_same(layers: dict[Target, LowRank], lora: LoRA) -> None:
    assert layers.keys() == lora.layers.keys()
    for target, layer in layers.items():
        assert torch.equal(layer.delta(), lora.layers[target].delta()), target


@pytest.mark.parametrize("preset", ["everywhere", "attention", "without modulation and ends"])
def test_a_preset_ignores_the_strengths(lora: LoRA, preset: str):
    """A workflow that was saved before `projections` came has no such input."""
    layers, text = run(lora, preset)
    assert_same(layers, apply_block_weights(lora, PRESETS[preset]))
    assert_same(run(lora, preset, projections="all")[0], LoRA(layers))
    assert text == f"acts in {len(layers)} of {lora.n_layers} layers"


@pytest.mark.parametrize(
    ("projections", "none"),
    [("without q and k", {"q": 0.0, "k": 0.0}), ("without v and out", {"v": 0.0, "out": 0.0})],
)
def test_projections_are_left_out_with_presets_and_with_custom_strengths(
    lora: LoRA, projections: str, none: dict[str, float]
):
    layers, text = run(lora, "attention", projections=projections)
    assert_same(layers, apply_block_weights(lora, replace(PRESETS["attention"], **none)))
    assert text == f"acts in {len(layers)} of {lora.n_layers} layers, {projections}"
    layers, _ = run(lora, "custom", projections=projections)
    where = BlockWeights(0.5, 2.0, 0.25, 3.0, 0.75, Curve.parse("0: 1, 1: 0.5"))
    assert_same(layers, apply_block_weights(lora, replace(where, **none)))
    whole, _ = run(lora, "custom")
    assert layers.keys() < whole.keys()


def test_layers_whose_q_and_k_are_not_known_are_refused(host):
    lora = LoRA({Target("layers.0.attention.qkv"): LowRank(torch.randn(2, 12), torch.randn(20, 2))})
    with pytest.raises(I2LError, match="use the same strength for all projections"):
        run(lora, "everywhere", projections="without q and k")
    assert run(lora, "everywhere")[1] == "acts in 1 of 1 layers"
