"""LoRA files of other tools: alpha, spellings, kinds, what is not of the diffusion model, and what a LoRA is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, Target
from i2l.i2l_core.lora_files.file import load, save
from i2l.i2l_core.lora_files.tensors import from_state_dict

DOWN, UP = "lora_down.weight", "lora_up.weight"

# Alpha, rank and spellings of other tools


NAME = "layers.0.attention.to_q"


def square(
    name: str = f"transformer.{NAME}",
    rank: int = 16,
    dtype=torch.float32,
    a="lora_A.weight",
    b="lora_B.weight",
):
    """The two tensors of a layer of 256x256."""
    return {f"{name}.{a}": torch.randn(rank, 256).to(dtype), f"{name}.{b}": torch.randn(256, rank).to(dtype)}


def product(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    down, up = list(tensors.values())[:2]
    return up.float() @ down.float()


def read(folder: Path, tensors, header=None, name: str = "x.safetensors", base_model: str = "") -> LoRA:
    save_file(tensors, folder / name, header)
    return load(folder / name, base_model)


def adapter(**values) -> dict[str, str]:
    return {
        "lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in values.items()})
    }


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        (adapter(r=16, lora_alpha=64), 4.0),
        (adapter(r=16, lora_alpha=8), 0.5),
        (adapter(r=8, lora_alpha=32), 2.0),  # the rank is that of the tensors
        (adapter(r=16, lora_alpha=16, use_rslora=True), 4.0),
        (adapter(r=16, lora_alpha=16, alpha_pattern={NAME: 64}), 4.0),
        (adapter(r=16, lora_alpha=16, alpha_pattern={"to_q": 64, "to_k": 1}), 4.0),
        (adapter(r=16, lora_alpha=64, alpha_pattern={"o_q": 16, "^layers.1.attention.to_q": 16}), 4.0),
        (adapter(r=16, lora_alpha=16, alpha_pattern={NAME: 64}, use_rslora=True), 16.0),
        ({"transformer.lora_alpha": "64", "transformer.r": "16"}, 4.0),
        ({"lora_alpha": "64", "use_rslora": "True"}, 16.0),
        ({"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 64, "text_encoder.r": 16})}, 1.0),
        ({"ss_network_alpha": "16", "ss_network_dim": "4"}, 1.0),
        ({}, 1.0),
    ],
)
def test_alpha_that_only_the_header_has_is_taken_as_diffusers_takes_it(tmp_path, header, factor):
    tensors = square()
    (layer,) = read(tmp_path, tensors, header).layers.values()
    torch.testing.assert_close(layer.delta(), factor * product(tensors))
    with_tensor = {**tensors, f"transformer.{NAME}.alpha": torch.tensor(32.0)}
    (layer,) = read(tmp_path, with_tensor, header).layers.values()
    torch.testing.assert_close(layer.delta(), 2 * product(tensors))  # a tensor wins


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (adapter(lora_alpha="much"), "lora_alpha .* must be a finite number, got 'much'"),
        (adapter(lora_alpha=True), "lora_alpha .* must be a finite number"),
        (adapter(lora_alpha=1, alpha_pattern={NAME: None}), "alpha_pattern of .*to_q .* finite number"),
        (adapter(lora_alpha=1, alpha_pattern=[1]), "alpha_pattern must be a JSON object"),
        (adapter(lora_alpha=1, alpha_pattern={"(.*)+to_q": 1}), "is not the name of a layer"),
        ({"lora_adapter_metadata": "{"}, "its lora_adapter_metadata is damaged"),
        ({"lora_adapter_metadata": "[1]"}, "lora_adapter_metadata must be a JSON object"),
        ({"lora_alpha": "nan"}, "finite number"),
    ],
)
def test_a_header_that_says_alpha_badly_is_refused(tmp_path, header, message):
    with pytest.raises(I2LError, match=message) as error:
        read(tmp_path, square(), header)
    assert str(error.value).startswith("x.safetensors: ")
    assert "\n" not in str(error.value)


def test_alpha_of_peft_is_in_the_config_beside_its_file(tmp_path):
    tensors = square(f"base_model.model.{NAME}")
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_rslora": False}))
    (layer,) = read(tmp_path, tensors, name="adapter_model.safetensors").layers.values()
    torch.testing.assert_close(layer.delta(), 2 * product(tensors))
    (layer,) = read(tmp_path, tensors, name="other.safetensors").layers.values()  # it is not of this file
    torch.testing.assert_close(layer.delta(), product(tensors))
    config.write_bytes(b"\xff\xfe{")
    with pytest.raises(
        I2LError, match=r"adapter_model.safetensors: adapter_config.json beside it cannot be read"
    ):
        load(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (".lora_down.weight", ".lora_up.weight"),
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A", ".lora_B"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_A.default_0.weight", ".lora_B.default_0.weight"),
        (".lora_A.style1.weight", ".lora_B.style1.weight"),
    ],
)
@pytest.mark.parametrize(
    "prefix",
    [
        *(
            "",
            "diffusion_model.",
            "transformer.",
            "model.diffusion_model.",
            "base_model.model.",
            "dit.",
            "unet.",
        ),
        *("base_model.model.diffusion_model.", "transformer.base_model.model.", "module.transformer."),
        *(
            "diffusion_model.transformer.",
            "lora_unet_",
            "lora_transformer_",
            "lycoris_",
            "lora_unet_transformer_",
        ),
    ],
)
def test_every_spelling_and_every_prefix_is_read(a, b, prefix):
    name = f"{prefix}{NAME.replace('.', '_') if prefix.endswith('_') else NAME}"
    down, up = torch.randn(4, 256), torch.randn(256, 4)
    lora = from_state_dict({f"{name}{a}": down, f"{name}{b}": up})
    assert list(lora.layers) == [Target("layers.0.attention.qkv", (0, 256))]
    assert lora.base_model == "i2l-tiny"
    assert torch.equal(lora.layers[Target("layers.0.attention.qkv", (0, 256))].delta(), up @ down)


def test_two_adapters_in_one_file_are_refused():
    tensors = square(a="lora_A.one.weight", b="lora_B.one.weight")
    tensors |= square(a="lora_A.two.weight", b="lora_B.two.weight")
    with pytest.raises(I2LError, match="more than one down tensor; export one adapter alone"):
        from_state_dict(tensors)


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("lora_magnitude_vector", "DoRA"),
        ("lora_magnitude_vector.weight", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("dora_scale", "DoRA"),
        ("magnitude", "DoRA"),
        ("lokr_w1", "LoKr"),
        ("lokr_w2_a", "LoKr"),
        ("hada_w1_a", "LoHa"),
        ("oft_blocks", "OFT"),
        ("oft_R.weight", "OFT"),
        ("boft_R", "OFT"),
        ("lora_mid.weight", "LoCon"),
        ("a1.weight", "GLoRA"),
        ("diff", "full weight differences"),
        ("diff_b", "full weight differences"),
        ("w_norm", "full weight differences"),
        ("set_weight", "weights to replace"),
        ("reshape_weight", "weights of another size"),
        ("lora_B.bias", "a LoRA with biases"),
        ("lora_B.default.bias", "a LoRA with biases"),
        ("lora_embedding_A", "a LoRA of embeddings"),
        ("bias_up", "expected pairs of"),
        ("diffs", "expected pairs of"),
        ("my_lokr_w1.x", "expected pairs of"),
    ],
)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "diff.diffusion_model."])
def test_other_kinds_are_told_by_the_end_of_their_keys(extra, kind, prefix):
    tensors = {**square("diffusion_model.layers.0.attention.out"), f"{prefix}{NAME}.{extra}": torch.ones(4)}
    with pytest.raises(I2LError) as error:
        from_state_dict(tensors)
    assert f"1 of 3 tensors are not LoRA layers ({prefix}{NAME}.{extra}): " in str(error.value)
    assert kind in str(error.value).partition("): ")[2]
    assert "Load LoRA" in str(error.value)
    assert "merged" in str(error.value)
    others = {"DoRA", "LoKr", "LoHa", "OFT", "differences", "replace"} - {kind.split(" ")[-1]}
    assert not any(other in str(error.value) for other in others if other not in kind)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("alpha", [None, 32.0])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16, torch.float32])
def test_8_bit_floats_are_read_as_the_values_they_are(tmp_path, dtype, alpha, half):
    tensors = square(dtype=dtype)
    if half is not None:
        tensors = {key: value.to(half) if "lora_B" in key else value for key, value in tensors.items()}
    given = tensors if alpha is None else {**tensors, f"transformer.{NAME}.alpha": torch.tensor(alpha)}
    (layer,) = read(tmp_path, given).layers.values()
    down, up = tensors.values()
    assert torch.equal(layer.down.float(), down.float())
    assert torch.equal(layer.up.float(), up.float() * (1 if alpha is None else 2))


@pytest.mark.parametrize(
    ("keys", "left_out"),
    [
        (["text_encoders.qwen.transformer.model.layers.0.self_attn.q_proj"], {"layers of a text encoder": 1}),
        (["lora_te_model_layers_0_mlp_up_proj", "lora_te1_x", "lora_te2_y"], {"layers of a text encoder": 3}),
        (["text_encoder.model.layers.0.self_attn.q_proj"], {"layers of a text encoder": 1}),
        (["text_encoder_2.x", "base_model.model.text_encoder.x"], {"layers of a text encoder": 2}),
        (["te_x", "te1.x", "lora_prior_te_x", "conditioner.embedders.0.x"], {"layers of a text encoder": 4}),
    ],
)
def test_what_is_not_of_the_diffusion_model_is_left_out_and_counted(keys, left_out):
    tensors = {name: tensor for key in keys for name, tensor in square(key).items()}
    tensors |= {f"{key}.alpha": torch.tensor(16.0) for key in keys}
    lora = from_state_dict({**square(), **tensors})
    assert list(lora.layers) == [Target("layers.0.attention.qkv", (0, 256))]
    assert lora.left_out == left_out
    with pytest.raises(
        I2LError, match=r"no LoRA layer of a diffusion model, only .*text encoder \(\d\): ComfyUI's Load LoRA"
    ):
        from_state_dict(tensors)


def test_embeddings_are_left_out_and_counted():
    embeddings = {
        "bundle_emb.0000-00.qwen": torch.randn(2, 64),
        "bundle_emb.0000-00.clip": torch.randn(2, 64),
    }
    lora = from_state_dict({**square(), **embeddings, "text_encoder.x.dora_scale": torch.ones(3)})
    assert lora.left_out == {"embeddings": 2, "layers of a text encoder": 1}
    assert lora.to(dtype=torch.float16).scaled(2).left_out == lora.left_out


def test_layers_that_the_host_has_not_are_left_out_and_counted():
    name = "model.language_model.layers.0.self_attn.q_proj"
    extra = square("model.visual.deepstack_merger_list.0.linear_fc1") | square("lm_head")
    lora = from_state_dict({**square(name), **extra})
    assert list(lora.layers) == [Target(name.removeprefix("model."))]
    assert lora.left_out == {"layers that ComfyUI's model has not": 2}
    with pytest.raises(
        I2LError, match="no layer of the diffusion model, only layers that ComfyUI's model has not"
    ):
        from_state_dict(extra)


# What a LoRA is for


def layers(names, width: int, rank: int = 1) -> dict[str, torch.Tensor]:
    found = {}
    for name in names:
        found |= {
            f"{name}.lora_A.weight": torch.randn(rank, width),
            f"{name}.lora_B.weight": torch.randn(width, rank),
        }
    return found


def test_one_strange_name_among_good_ones_is_refused_by_name(tmp_path):
    tensors = layers([f"diffusion_model.layers.{i}.attention.out" for i in range(6)], 256)
    assert read(tmp_path, tensors).base_model == "i2l-tiny"
    tensors |= layers(["diffusion_model.layers.2.attention.outt"], 256)
    with pytest.raises(
        I2LError, match=r"x.safetensors: 1 of its 7 layers \(diffusion_model.layers.2.attention.outt\)"
    ):
        read(tmp_path, tensors)
    with pytest.raises(I2LError, match=r"attention.outt \(it has no such layer\).*set base_model to auto"):
        read(tmp_path, tensors, base_model="i2l-tiny")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            layers(
                [
                    "transformer.transformer_blocks.0.attn.to_q",
                    "transformer.transformer_blocks.0.img_mlp.gate_layer",
                ],
                64,
            ),
            "for Qwen-Image 2.1, which is not supported",
        ),
        (
            layers(
                [
                    "lora_unet_transformer_blocks_0_attn_to_q",
                    "lora_unet_transformer_blocks_0_img_mlp_gate_layer",
                ],
                64,
            ),
            "for Qwen-Image 2.1, which is not supported",
        ),
        (
            layers(["layers.0.attention.out", "dec_net.cond_embed"], 256),
            "for pixel-space Z-Image, which is not",
        ),
        (layers(["layers.0.attention.out", "t_embedder_2.mlp.0"], 256), "for TwinFlow, which is not"),
        (
            layers(["double_blocks.0.img_attn.proj", "double_blocks.0.img_mod.lin"], 256),
            "for FLUX.1, which is not",
        ),
        (
            layers(["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.proj_mlp"], 256),
            "for FLUX.1",
        ),
        (
            {**layers(["single_blocks.0.linear1"], 256), **layers(["double_blocks.0.img_attn.proj"], 256)},
            r"the sizes of 1 of its 2 layers \(single_blocks.0.linear1 \(256x256\)\) are not of the FLUX.2 class",
        ),
        (
            layers([f"transformer_blocks.{i}.attn.to_q" for i in range(32)], 4096),
            "its sizes of no model that is supported",
        ),
    ],
)
def test_loras_of_other_models_that_share_names_are_refused(tmp_path, tensors, message):
    with pytest.raises(I2LError, match=message) as error:
        read(tmp_path, tensors)
    assert "choose the base model" not in str(error.value)
    assert "Load LoRA" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_model_that_is_chosen_must_have_the_layers(tmp_path):
    tensors = layers([f"transformer_blocks.{i}.attn.to_q" for i in range(3)], 3072)
    assert read(tmp_path, tensors, base_model="qwen-image").base_model == "qwen-image"
    assert read(tmp_path, tensors, base_model="flux2-klein-4b").base_model == "flux2-klein-4b"
    for other in ("flux2-klein-9b", "flux2-dev", "z-image", "hidream-o1"):
        with pytest.raises(
            I2LError, match=rf"x.safetensors is not for .*\({other}\), 3 of its 3 layers do not fit: .*auto"
        ):
            read(tmp_path, tensors, base_model=other)
    with pytest.raises(I2LError, match=r"transformer_blocks.0.attn.to_q \(3072x3072, there 4096x4096\)"):
        read(tmp_path, tensors, base_model="flux2-klein-9b")


@pytest.mark.parametrize(
    "name", ["lora_unet_blocks_0_attn_q", "lycoris_blocks_0_q", "transformer.blocks.0.q", "unet.x.y"]
)
def test_names_of_an_unknown_model_are_written_as_they_came(tmp_path, name):
    """ComfyUI's loader maps them to parameters, and finds them only so."""
    tensors = layers([name], 8)
    lora = read(tmp_path, tensors)
    assert (list(lora.layers), lora.base_model) == ([Target(name)], "")
    path = save(lora, tmp_path / "again.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {f"{name}.{DOWN}", f"{name}.{UP}"}
    again = load(path).layers[Target(name)]
    assert torch.equal(again.delta(), lora.layers[Target(name)].delta())
