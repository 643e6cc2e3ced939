"""The nodes of asymmetric guidance and of live application: what they give, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_world import random_demo_weights

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA


@pytest.fixture(scope="module")
def world(host, tmp_path_factory: pytest.TempPathFactory):
    from i2l.i2l_core.host.demo.world import load_demo

    with torch.inference_mode():
        return load_demo(random_demo_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def loras(world):
    from i2l.nodes.predict import ImagesToLoRA

    with torch.inference_mode():
        out = ImagesToLoRA.execute(world.predictor, {"image0": torch.rand(2, 64, 64, 3)})
    return out[0], out[1]


@pytest.fixture(scope="module")
def conds(world):
    def encode(text: str):
        return world.clip.encode_from_tokens_scheduled(world.clip.tokenize(text))

    with torch.inference_mode():
        return encode("two fish on the left"), encode("")


def ksampler(model, conds, cfg: float = 4.0) -> torch.Tensor:
    """Two steps of core's KSampler."""
    import comfy.sample

    latent, (positive, negative) = torch.zeros(1, 16, 16, 16), conds
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, 7)
        return comfy.sample.sample(
            model, noise, 2, cfg, "euler", "simple", positive, negative, latent, seed=7, disable_pbar=True
        )


def custom(guider) -> torch.Tensor:
    """The same through SamplerCustomAdvanced."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 2)
    with torch.inference_mode():
        out = SamplerCustomAdvanced.execute(
            Noise_RandomNoise(7),
            guider,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            {"samples": torch.zeros(1, 16, 16, 16)},
        )
    return out[0]["samples"]


def cfg_node(world, loras, **inputs: Any):
    from i2l.nodes.guide import AsymmetricCFG

    style, neutral = loras
    given = {
        "model": world.model,
        "style": style,
        "neutral": neutral,
        "strength": 1.0,
        "neutral_strength": 1.0,
    }
    return AsymmetricCFG.execute(**{**given, **inputs})


def guider_node(world, loras, conds, cfg: float, **inputs: Any):
    from i2l.nodes.guide import AsymmetricGuider

    (style, neutral), (positive, negative) = loras, conds
    return AsymmetricGuider.execute(world.model, positive, negative, style, cfg, 1.0, 1.0, neutral, **inputs)


def apply_node(world, lora, **inputs: Any):
    from i2l.nodes.apply import ApplyPredictedLoRA

    return ApplyPredictedLoRA.execute(world.model, lora, 1.0, **inputs)


def test_both_nodes_paint_the_same(world, loras, conds):
    styled = ksampler(cfg_node(world, loras)[0], conds)
    torch.testing.assert_close(custom(guider_node(world, loras, conds, 4.0)[0]), styled, rtol=1e-5, atol=1e-5)
    assert (styled - ksampler(world.model, conds)).abs().max() > 1e-3


def test_both_nodes_have_the_same_schedule(world, loras, conds):
    schedule = {"start_percent": 0.1, "end_percent": 0.8, "curve": "fade out"}
    scheduled = ksampler(cfg_node(world, loras, **schedule)[0], conds)
    guider = guider_node(world, loras, conds, 4.0, **schedule)[0]
    torch.testing.assert_close(custom(guider), scheduled, rtol=1e-5, atol=1e-5)
    assert (scheduled - ksampler(cfg_node(world, loras)[0], conds)).abs().max() > 1e-3


def test_at_cfg_1_the_style_acts_alone_and_the_node_says_so(world, loras, conds):
    node = guider_node(world, loras, conds, 1.0)
    assert "no negative side" in str(node.ui.as_dict())
    assert "no negative side" not in str(guider_node(world, loras, conds, 4.0).ui.as_dict())
    (card,) = node.ui.as_dict()["i2l_card"]
    assert [warning["id"] for warning in card["warnings"]] == ["cfg_1"]
    merged = apply_node(world, loras[0])[0]
    torch.testing.assert_close(custom(node[0]), ksampler(merged, conds, 1.0), rtol=1e-4, atol=1e-4)


def test_without_neutral_the_negative_side_is_the_model(world, loras, conds):
    alone = ksampler(cfg_node(world, loras, neutral=None)[0], conds)
    zero = ksampler(cfg_node(world, loras, neutral_strength=0.0)[0], conds)
    assert torch.equal(alone, zero)
    assert not torch.equal(alone, ksampler(cfg_node(world, loras)[0], conds))


def test_a_neutral_lora_with_other_targets_counts_as_zero_there(world, loras, conds):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    lora = loras[1].lora
    few = PredictedLoRA(LoRA(dict(list(lora.layers.items())[:5]), lora.base_model))
    assert ksampler(cfg_node(world, loras, neutral=few)[0], conds).isfinite().all()


def test_the_node_says_where_the_layers_are(world, loras):
    text = str(cfg_node(world, loras).ui.as_dict())
    assert "positive: " in text
    assert "negative: " in text
    assert "13 of 13 LoRA layers" in text
    (card,) = cfg_node(world, loras).ui.as_dict()["i2l_card"]
    assert [(entry["side"], entry["role"], entry["landed"]) for entry in card["loras"]] == [
        ("positive", "style", 13),
        ("negative", "neutral", 13),
    ]
    assert not card["warnings"]


def test_a_neutral_lora_in_place_of_the_style_is_said(world, loras, conds):
    for node in (cfg_node(world, loras[::-1]), guider_node(world, loras[::-1], conds, 4.0)):
        (card,) = node.ui.as_dict()["i2l_card"]
        assert [warning["id"] for warning in card["warnings"]] == ["no_style"]


def test_live_mode_equals_merged(world, loras, conds):
    live = ksampler(apply_node(world, loras[0], mode="live")[0], conds)
    merged = ksampler(apply_node(world, loras[0], mode="merged")[0], conds)
    torch.testing.assert_close(live, merged, rtol=1e-4, atol=1e-4)


def test_live_after_merged_and_asymmetric_after_live_add_up(world, loras, conds):
    from i2l.nodes.apply import ApplyPredictedLoRA
    from i2l.nodes.guide import AsymmetricCFG

    once = apply_node(world, loras[0], mode="live")[0]
    twice = ApplyPredictedLoRA.execute(once, loras[1], 1.0, mode="live")[0]
    merged = ApplyPredictedLoRA.execute(apply_node(world, loras[0])[0], loras[1], 1.0)[0]
    torch.testing.assert_close(ksampler(twice, conds), ksampler(merged, conds), rtol=1e-4, atol=1e-4)
    both = AsymmetricCFG.execute(apply_node(world, loras[0])[0], loras[1], 1.0, 1.0)[0]
    assert ksampler(both, conds).isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"strength": float("nan")}, "strength must be a finite number"),
        ({"neutral_strength": float("inf")}, "strength must be a finite number"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "is after end"),
        ({"start_percent": float("nan")}, "start and end must be from 0 to 1"),
        ({"style": None}, "expected a LORA_MODEL"),
        ({"style": {"diffusion_model.nowhere.lora_A.weight": torch.zeros(1, 2)}}, "nowhere"),
    ],
)
def test_asymmetric_cfg_refuses_before_anything_is_made(world, loras, inputs, words):
    before = set(world.model.wrappers)
    with pytest.raises(I2LError, match=words):
        cfg_node(world, loras, **inputs)
    assert set(world.model.wrappers) == before


def test_a_lora_for_another_base_model_is_refused(world, loras):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    other = PredictedLoRA(LoRA(dict(loras[0].lora.layers), base_model="flux2-klein-4b"))
    for inputs in ({"style": other}, {"neutral": other}):
        with pytest.raises(I2LError, match=r"FLUX\.2 klein 4B"):
            cfg_node(world, loras, **inputs)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"mode": "merged", "end_percent": 0.5}, "need the mode live"),
        ({"mode": "merged", "mask": torch.ones(1, 8, 8)}, "need the mode live"),
        ({"mode": "sideways"}, "mode must be"),
        ({"mode": "live", "mask": torch.ones(8, 8)}, "the mask must be a MASK"),
        ({"mode": "live", "mask": torch.full((1, 8, 8), float("nan"))}, "NaN"),
        ({"mode": "live", "mask": torch.ones(1, 0, 8)}, "the mask must be a MASK"),
    ],
)
def test_apply_refuses(world, loras, inputs, words):
    with pytest.raises(I2LError, match=words):
        apply_node(world, loras[0], **inputs)


@pytest.mark.parametrize(
    ("mask", "words"),
    [(torch.ones(3, 8, 8), "3 pictures, the batch 1"), (torch.ones(1, 8, 16), "proportions")],
)
def test_a_mask_for_other_pictures_is_refused_before_sampling(world, loras, conds, mask, words):
    styled = apply_node(world, loras[0], mode="live", mask=mask)[0]
    with pytest.raises(I2LError, match=words):
        ksampler(styled, conds)


def test_a_style_region_paints_its_half(world, loras, conds):
    from i2l.nodes.region import StyleRegion

    mask = torch.zeros(1, 32, 32)
    mask[..., :16] = 1
    out = StyleRegion.execute(world.model, conds[0], loras[0], mask, 1.0, curve="fade out")
    text: Any = out.ui
    assert text.as_dict()["text"] == ("50% of the picture; 2 positive predictions per step",)
    change = ksampler(out[0], (out[1], conds[1])) - ksampler(world.model, conds)
    left, right = change[..., :8].abs().mean(), change[..., 8:].abs().mean()
    assert left > 3 * right > 0  # in the second step the right half sees the left one


def test_a_style_region_refuses_a_curve_that_is_none(world, loras, conds):
    from i2l.nodes.region import StyleRegion

    with pytest.raises(I2LError, match="curve"):
        StyleRegion.execute(world.model, conds[0], loras[0], torch.ones(1, 8, 8), 1.0, curve="up")
