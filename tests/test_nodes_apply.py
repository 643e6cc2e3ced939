"""Apply Predicted LoRA on the real host: exact on our LoRAs and on core's; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import random_demo_weights, save_random_predictor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target

DIM = 256


@pytest.fixture(scope="module")
def world(host, tmp_path_factory: pytest.TempPathFactory):
    from i2l.i2l_core.host.demo.world import load_demo

    with torch.inference_mode():
        return load_demo(random_demo_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def predicted(world):
    from i2l.nodes.predict import ImagesToLoRA

    with torch.inference_mode():
        return ImagesToLoRA.execute(world.predictor, {"image0": torch.rand(2, 64, 64, 3)})


def apply(model, lora, strength: float = 1.0, **options):
    from i2l.nodes.apply import ApplyPredictedLoRA

    return ApplyPredictedLoRA.execute(model, lora, strength, **options)


def weights_of(model) -> dict[str, torch.Tensor]:
    """All weights as they are when the model runs."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_patch_weights=True)
        return {key: value.clone() for key, value in model.model.state_dict().items()}


def pair(d_out: int = 3 * DIM, d_in: int = DIM, rank: int = 2, scale: float = 0.1):
    return torch.randn(d_out, rank) * scale, torch.randn(rank, d_in) * scale


def test_weights_get_the_low_rank_change_and_the_model_stays(world, predicted):
    before = weights_of(world.model)
    styled = apply(world.model, predicted[0], 0.5)[0]
    after = weights_of(styled)
    expected = {key: value.clone() for key, value in before.items()}
    for target, layer in predicted[0].lora.layers.items():
        start, length = target.rows or (0, layer.d_out)
        expected[f"diffusion_model.{target.weight}.weight"][start : start + length] += 0.5 * layer.delta()
    assert after.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(after[key], expected[key], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(after[key], before[key]) for key in before)
    assert not world.model.patches
    again = weights_of(world.model)
    assert all(torch.equal(again[key], before[key]) for key in before)


def test_core_loader_gives_the_same_weights(world, predicted):
    from comfy_extras.nodes_train import LoraModelLoader

    ours = weights_of(apply(world.model, predicted[0])[0])
    theirs = weights_of(LoraModelLoader.execute(world.model, predicted[0], 1.0)[0])
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-6)


def test_text_says_where_the_layers_are(world, predicted):
    shown: Any = apply(world.model, predicted[0]).ui
    text = shown.as_dict()["text"][0]
    count = predicted[0].lora.n_layers
    assert text.startswith(f"{count} of {count} LoRA layers on ")


@pytest.mark.parametrize(("index", "role"), [(0, "style"), (1, "neutral")])
@pytest.mark.parametrize("mode", ["merged", "live"])
def test_card_says_what_was_applied_and_how(world, predicted, index: int, role: str, mode: str):
    shown: Any = apply(world.model, predicted[index], 0.5, mode=mode).ui
    (card,) = shown.as_dict()["i2l_card"]
    (entry,) = card["loras"]
    count = predicted[index].lora.n_layers
    assert (entry["landed"], entry["layers"]) == (count, count)
    assert (entry["role"], entry["mode"], entry["strength"]) == (role, mode, 0.5)
    assert [warning["id"] for warning in card["warnings"]] == ["no_style"] * index


@pytest.mark.parametrize(
    ("inputs", "mode"),
    [
        ({}, "merged"),
        ({"start_percent": 0.1}, "live"),
        ({"end_percent": 0.9}, "live"),
        ({"curve": "0: 1, 1: 0"}, "live"),
        ({"mask": torch.ones(1, 8, 8)}, "live"),
    ],
)
def test_mode_auto_is_live_only_where_something_needs_it(world, predicted, inputs: dict[str, Any], mode: str):
    shown: Any = apply(world.model, predicted[0], mode="auto", **inputs).ui
    (card,) = shown.as_dict()["i2l_card"]
    assert card["loras"][0]["mode"] == mode


def test_card_of_a_core_nodes_lora_if_we_can_read_it(world):
    up, down = pair()
    key = "diffusion_model.layers.1.attention.qkv"
    lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    shown: Any = apply(world.model, lora).ui
    (card,) = shown.as_dict()["i2l_card"]
    assert (card["loras"][0]["landed"], card["warnings"]) == (1, [])
    shown = apply(world.model, {**lora, "diffusion_model.layers.1.attention_norm1.diff": torch.randn(DIM)}).ui
    assert shown.as_dict()["i2l_card"] == ({"lines": ["2 LoRA layers, all of them placed"]},)


def test_card_warns_of_layers_that_were_left_out(world, predicted):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    lora = predicted[0].lora
    elsewhere = LoRA({**lora.layers, Target("layers.99.attention.qkv"): LowRank(*reversed(pair()))})
    shown: Any = apply(world.model, PredictedLoRA(elsewhere), missing_layers="skip").ui
    (card,) = shown.as_dict()["i2l_card"]
    assert [(warning["id"], warning["n"]) for warning in card["warnings"]] == [("left_out", 1)]
    assert (card["loras"][0]["landed"], card["loras"][0]["layers"]) == (lora.n_layers, lora.n_layers + 1)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_lora_of_a_core_node_is_taken(world, prefix: str):
    """With alpha, with full differences, as Train LoRA and kohya's trainers write them."""
    up, down = pair()
    name = "layers.1.attention.qkv"
    key = prefix + (name.replace(".", "_") if prefix == "lora_unet_" else name)
    diff = torch.randn(DIM)
    lora = {
        f"{key}.lora_up.weight": up,
        f"{key}.lora_down.weight": down,
        f"{key}.alpha": torch.tensor(1.0),
        "diffusion_model.layers.1.attention_norm1.diff": diff,
    }
    before, after = weights_of(world.model), weights_of(apply(world.model, lora, 0.5)[0])
    whole = f"diffusion_model.{name}.weight"
    torch.testing.assert_close(after[whole], before[whole] + 0.5 * 0.5 * up @ down, rtol=1e-4, atol=1e-6)
    norm = "diffusion_model.layers.1.attention_norm1.weight"
    torch.testing.assert_close(after[norm], before[norm] + 0.5 * diff, rtol=1e-4, atol=1e-6)


def test_rows_under_diffusers_names_are_taken(world):
    up, down = pair(DIM)
    lora = {
        "transformer.layers.2.attention.to_k.lora_A.weight": down,
        "transformer.layers.2.attention.to_k.lora_B.weight": up,
    }
    before, after = weights_of(world.model), weights_of(apply(world.model, lora)[0])
    key = "diffusion_model.layers.2.attention.qkv.weight"
    expected = before[key].clone()
    expected[DIM : 2 * DIM] += up @ down
    torch.testing.assert_close(after[key], expected, rtol=1e-4, atol=1e-6)


def foreign(name: str, d_out: int = 3 * DIM, d_in: int = DIM, scale: float = 0.1) -> dict[str, torch.Tensor]:
    up, down = pair(d_out, d_in, scale=scale)
    return {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}


def other(name: str, size: int, scale: float = 0.1) -> dict[str, torch.Tensor]:
    return {f"diffusion_model.{name}.diff": torch.full((size,), scale)}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({}, "holds no LoRA layer"),
        ("a name", "expected a LORA_MODEL, a dict of tensors, got str"),
        (
            foreign("blocks.0.attn"),
            r"0 of 1 LoRA layers .*blocks\.0\.attn \(the model has no such weight\); "
            r"use a LoRA that was made for this model$",
        ),
        (
            foreign("layers.1.attention.qkv")
            | foreign("x.0")
            | foreign("x.1")
            | foreign("x.2")
            | foreign("x.3"),
            r"1 of 5 LoRA layers .*x\.0 \(the model has no such weight\).*setting missing_layers to skip",
        ),
        (foreign("layers.1.attention.qkv", d_in=64), "layer 768x64, weight 768x256"),
        (foreign("layers.1.attention.qkv", scale=float("nan")), "qkv holds NaN or infinite values"),
        # left to the host: it has more than plain layers
        (other("blocks.0.norm", DIM), r"1 of its 1 tensors match no weight \(.*blocks\.0\.norm\.diff"),
        (other("layers.1.attention_norm1", 3), r"attention_norm1\.weight \(layer 3, weight 256\)"),
        (other("layers.1.attention_norm1", DIM, float("nan")), "NaN or infinite values in .*norm1.diff"),
    ],
)
def test_foreign_lora_that_does_not_fit_is_refused(world, lora, message: str):
    with pytest.raises(I2LError, match=message) as caught:
        apply(world.model, lora)
    assert "\n" not in str(caught.value)
    assert not world.model.patches


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_layers_that_the_model_lacks_can_be_skipped(world, mode: str):
    lora = foreign("layers.1.attention.qkv") | foreign("deeper.1.attention.qkv")
    with pytest.raises(I2LError, match="1 of 2 LoRA layers"):
        apply(world.model, lora, mode=mode)
    out = apply(world.model, lora, mode=mode, missing_layers="skip")
    shown: Any = out.ui
    assert "1 of 2 LoRA layers on 1 weights" in shown.as_dict()["text"][0]
    if mode == "merged":
        assert set(out[0].patches) == {"diffusion_model.layers.1.attention.qkv.weight"}
    with pytest.raises(I2LError, match="0 of 1 LoRA layers"):
        apply(world.model, foreign("deeper.1.attention.qkv"), mode=mode, missing_layers="skip")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_of_a_foreign_lora_must_be_finite(world, strength: float):
    with pytest.raises(I2LError, match="strength must be a finite number"):
        apply(world.model, foreign("layers.1.attention.qkv"), strength)


def ours(base_model: str = "i2l-tiny", weight: str = "layers.1.attention.qkv", fill: float | None = None):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    up, down = pair()
    if fill is not None:
        up[0, 0] = fill
    return PredictedLoRA(LoRA({Target(weight): LowRank(down, up)}, base_model=base_model))


@pytest.mark.parametrize(
    ("make", "strength", "message"),
    [
        (
            lambda: ours("flux2-klein-4b"),
            1.0,
            "the LoRA is for FLUX.2 klein 4B .*, but the MODEL is the tiny",
        ),
        (
            lambda: ours(weight="layers.9.attention.qkv"),
            1.0,
            "does not fit this MODEL.*layers.9.attention.qkv",
        ),
        (lambda: ours(fill=float("inf")), 1.0, "layers.1.attention.qkv holds NaN or infinite"),
        (ours, float("nan"), "strength must be a finite number"),
    ],
)
def test_predicted_lora_that_does_not_fit_is_refused(world, make, strength: float, message: str):
    lora = make()
    with pytest.raises(I2LError, match=message) as caught:
        apply(world.model, lora, strength)
    assert "\n" not in str(caught.value)
    assert not world.model.patches


@torch.inference_mode()
def test_a_predictor_for_another_base_model_is_refused_when_it_is_applied(world, tmp_path: Path):
    from i2l.i2l_core.host.predictors.runtime import load_predictor
    from i2l.nodes.predict import ImagesToLoRA

    other = load_predictor(save_random_predictor(tmp_path / "flux.safetensors", "flux2-dev"))
    lora = ImagesToLoRA.execute(other, {"image0": torch.rand(1, 32, 32, 3)})[0]
    with pytest.raises(I2LError, match=r"the LoRA is for FLUX\.2 dev .*the MODEL is the tiny demo model"):
        apply(world.model, lora)


@torch.inference_mode()
def test_predicting_leaves_the_loaded_model_where_it_is(world):
    """There is room: the user's model stays loaded, bit-identical."""
    import comfy.model_management as mm

    from i2l.nodes.predict import ImagesToLoRA

    before = weights_of(world.model)
    mm.load_models_gpu([world.model])
    ImagesToLoRA.execute(world.predictor, {"image0": torch.rand(5, 32, 32, 3)})
    assert world.model in mm.loaded_models()
    assert all(torch.equal(v, before[k]) for k, v in world.model.model.state_dict().items())


def test_whole_width_of_a_fused_weight_comes_from_the_layout(host):
    """Only q and k are changed: the file still has all rows of qkv, the last ones zero."""
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    layers = {}
    for i in range(2):
        up, down = pair(DIM)
        layers[Target("layers.0.attention.qkv", (i * DIM, DIM))] = LowRank(down, up)
    tensors = PredictedLoRA(LoRA(layers, base_model="i2l-tiny"))
    up = tensors["diffusion_model.layers.0.attention.qkv.lora_up.weight"]
    assert up.shape == (3 * DIM, 4)
    assert not up[2 * DIM :].any()
