"""The tables of the base models: every layer of the real networks is found, and its rows fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import CONFIGS

from i2l.i2l_core.base_models import ARCHITECTURES, MODELS, LayerRule, find_model, recognise
from i2l.i2l_core.base_models.flux2 import FLUX2
from i2l.i2l_core.base_models.lumina2 import LUMINA2
from i2l.i2l_core.base_models.table import Architecture
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LowRank, Target

META: dict[str, Any] = dict(device="meta", dtype=torch.bfloat16)


def meta_lumina2(dim=3840, layers=30, refiners=2, heads=30, text=2560, siglip=None):
    """ComfyUI's own Z-Image network on the meta device."""
    from comfy.ldm.lumina.model import NextDiT
    from comfy.ops import disable_weight_init

    sizes = dict(dim=dim, n_layers=layers, n_refiner_layers=refiners, n_heads=heads, n_kv_heads=heads)
    axes = [dim // heads // 4, dim // heads * 3 // 8, dim // heads * 3 // 8]
    config = {
        **CONFIGS["lumina2"],
        **sizes,
        "axes_dims": axes,
        "cap_feat_dim": text,
        "siglip_feat_dim": siglip,
    }
    return NextDiT(**config, **META, operations=disable_weight_init)


def meta_flux2(hidden, heads, double, single, text, guidance=False, **tiny):
    """ComfyUI's own FLUX.2 network on the meta device. Sizes: black-forest-labs/flux2, model.py."""
    from comfy.ldm.flux.model import Flux
    from comfy.ops import disable_weight_init

    sizes = dict(hidden_size=hidden, num_heads=heads, depth=double, depth_single_blocks=single)
    config = {**CONFIGS["flux2"], **sizes, "context_in_dim": text, "guidance_embed": guidance, **tiny}
    return Flux(**config, **META, operations=disable_weight_init)


def meta_hidream_o1():
    """ComfyUI's own HiDream-O1 network, whose default is the full size, on the meta device."""
    from comfy.ldm.hidream_o1.model import HiDreamO1Transformer
    from comfy.ops import disable_weight_init

    return HiDreamO1Transformer(**META, operations=disable_weight_init)


def meta_qwen_image(**sizes):
    """ComfyUI's own Qwen-Image network, whose default is the full size, on the meta device."""
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.ops import disable_weight_init

    return QwenImageTransformer2DModel(**sizes, **META, operations=disable_weight_init)


NETWORKS = {  # name: (id of the base model, ComfyUI's network in full size, how many layers the reference has)
    "Z-Image": ("z-image", meta_lumina2, 276),
    "Z-Image Omni": ("z-image", lambda: meta_lumina2(siglip=1152), 276 + 1 + 2 * 7),
    "FLUX.2 klein 4B": ("flux2-klein-4b", lambda: meta_flux2(3072, 24, 5, 20, 7680), 109),
    "FLUX.2 klein 9B": ("flux2-klein-9b", lambda: meta_flux2(4096, 32, 8, 24, 12288), 12 * 8 + 2 * 24 + 9),
    "FLUX.2 dev": ("flux2-dev", lambda: meta_flux2(6144, 48, 8, 48, 15360, True), 12 * 8 + 2 * 48 + 11),
    "HiDream-O1": ("hidream-o1", meta_hidream_o1, 374 - 7),  # see absent
    "Qwen-Image": ("qwen-image", meta_qwen_image, 14 * 60 + 6),
    "Qwen-Image-Edit-2511": (
        "qwen-image",
        lambda: meta_qwen_image(default_ref_method="index_timestep_zero"),
        14 * 60 + 6,
    ),
    "Qwen-Image-Layered": ("qwen-image", lambda: meta_qwen_image(use_additional_t_cond=True), 14 * 60 + 6),
    "tiny FLUX.2": (
        "i2l-tiny-flux2",
        lambda: meta_flux2(
            160, 5, 1, 6, 128, axes_dim=[8] * 4, in_channels=16, out_channels=16, patch_size=2
        ),
        12 + 2 * 6 + 9,
    ),
    "tiny": ("i2l-tiny", lambda: meta_lumina2(256, 6, 1, 4, 128), 6 * 8 + 8 + 7 + 6),
}


@pytest.fixture(scope="module")
def networks(host):
    """Name -> the parameters of ComfyUI's network, and which of its layers are linear."""
    found = {}
    for name, (_, make, _) in NETWORKS.items():
        network = make()
        found[name] = shapes(network), linear_weights(network)
    return found


def shapes(network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


def linear_weights(network) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_linear_is_covered_once(networks, name):
    """Every Linear of the network has rules for all of its rows, once; no rule points elsewhere."""
    id, _, count = NETWORKS[name]
    weights, linear = networks[name]
    base = recognise(weights)
    assert base.id == id
    slots = base.architecture.adapted_layers(weights)
    assert len(slots) == len({slot.name for slot in slots}) == count
    assert {slot.target.weight for slot in slots} == linear
    ends = dict.fromkeys(linear, 0)
    for slot in sorted(slots, key=lambda slot: slot.target):
        d_out, d_in = weights[f"{slot.target.weight}.weight"]
        start, length = slot.target.rows or (0, d_out)
        assert start == ends[slot.target.weight]
        assert (slot.d_out, slot.d_in) == (length, d_in)
        ends[slot.target.weight] += length
    assert ends == {weight: weights[f"{weight}.weight"][0] for weight in linear}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_the_network(networks, name):
    """A base model knows the shape of each of its layers when it is not loaded."""
    weights, linear = networks[name]
    base = recognise(weights)
    known = base.architecture.weights(base.architecture.read_sizes(weights))
    real = {f"{weight}.weight": weights[f"{weight}.weight"] for weight in linear}
    if (
        name == "tiny FLUX.2"
    ):  # its patches are half as wide; 128 is what tells FLUX.2's LoRAs from Qwen-Image's
        for end in ("img_in.weight", "final_layer.linear.weight"):
            assert 64 in real.pop(end)
            assert 128 in known.pop(end)
        assert known == real
        return
    assert known == real
    if name == "Z-Image":  # knows the eyes of Omni as well
        assert known.items() < base.weights().items()
    else:
        assert known == base.weights()


def test_relatives_of_qwen_image_are_not_taken_for_it(host):
    """Mage-Flow is the same network in other sizes."""
    with pytest.raises(
        I2LError, match=r"Qwen-Image class, but its sizes \(hidden 3072, text 2560, layers 12\)"
    ):
        recognise(shapes(meta_qwen_image(num_layers=12, joint_attention_dim=2560)))


def test_every_network_is_of_one_class(networks):
    for weights, _ in networks.values():
        assert [one for one in ARCHITECTURES if one.matches(weights)] == [recognise(weights).architecture]


def test_z_image_names_are_the_hosts_own(networks):
    """The rows of every name that ComfyUI's LoRA loader knows are the ones in our table."""
    from comfy.utils import z_image_to_diffusers

    theirs = z_image_to_diffusers({"n_layers": 30, "dim": 3840, "n_refiner_layers": 2})
    for slot in LUMINA2.adapted_layers(networks["Z-Image"][0]):
        found = theirs[f"{slot.name}.weight"]
        weight, rows = (found, None) if isinstance(found, str) else (found[0], found[1][1:])
        assert Target(weight.removesuffix(".weight"), rows) == slot.target


def test_flux2_names_are_the_hosts_own_where_it_has_them(networks):
    from comfy.utils import flux_to_diffusers

    theirs = flux_to_diffusers({"depth": 5, "depth_single_blocks": 20, "hidden_size": 3072})
    dropped = []
    for slot in FLUX2.adapted_layers(networks["FLUX.2 klein 4B"][0]):
        found = theirs.get(f"{slot.name}.weight")
        if found is None:
            dropped.append(slot.name)
            continue
        weight, rows = (found, None) if isinstance(found, str) else (found[0], found[1] and found[1][1:])
        assert Target(weight.removesuffix(".weight"), rows) == slot.target
        assert slot.swapped == (not isinstance(found, str) and len(found) > 2)
    assert dropped == [  # the five that ComfyUI 0.30 drops
        "time_guidance_embed.timestep_embedder.linear_1",
        "time_guidance_embed.timestep_embedder.linear_2",
        "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.linear",
        "single_stream_modulation.linear",
    ]


def test_other_models_are_refused_with_the_known_ones(host):
    other_size = shapes(meta_flux2(256, 2, 1, 2, 48))
    with pytest.raises(I2LError, match=r"but its sizes \(hidden 256, text 48, double 1, single 2"):
        recognise(other_size)
    with pytest.raises(I2LError) as error:
        recognise({"input_blocks.0.weight": (4, 4)})
    assert "another network" in str(error.value)
    for model in MODELS:
        assert f"{model.title} ({model.id})" in str(error.value)
    with pytest.raises(I2LError, match="not a known base model"):
        recognise({})


def test_swapped_halves_move_and_come_back():
    weights = {"final_layer.adaLN_modulation.1.weight": (6, 4)}
    (slot,) = Architecture("t", FLUX2.rules, (), {}).adapted_layers(weights)
    layer = LowRank(torch.randn(2, 4), torch.randn(6, 2))
    placed = slot.place(layer)
    assert torch.equal(placed.delta(), torch.cat([layer.delta()[3:], layer.delta()[:3]]))
    assert torch.equal(slot.place(placed).up, layer.up)
    with pytest.raises(I2LError, match="expected a LoRA layer of 6x4, got 6x5"):
        slot.place(LowRank(torch.randn(2, 5), torch.randn(6, 2)))


def test_fused_rows_must_divide():
    with pytest.raises(I2LError, match="10 rows do not divide into 3"):
        Architecture("t", (LayerRule("to_q", "qkv", (0, 3)),), (), {}).adapted_layers({"qkv.weight": (10, 4)})
    with pytest.raises(I2LError, match="expected a matrix"):
        Architecture("t", (LayerRule("to_q", "qkv"),), (), {}).adapted_layers({"qkv.weight": (10,)})


def test_the_tables_are_sound():
    for architecture in ARCHITECTURES:
        names = [rule.name for rule in architecture.rules]
        assert len(names) == len(set(names))
        assert all(rule.name.count("{}") == rule.weight.count("{}") <= 1 for rule in architecture.rules)
        assert not set(architecture.absent) & set(names)
        assert all(0 not in rule.size for rule in architecture.rules)
    ids = [model.id for model in MODELS]
    assert len(ids) == len(set(ids))
    assert find_model("z-image") is MODELS[0]
    assert find_model("nothing") is None


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_lora_managers_do_not_mistake_the_name(model):
    """ComfyUI-Lora-Manager shows another base model when it finds one of these anywhere in the name."""
    assert not any(word in model.manager_name.lower() for word in ("il", "sdxl", "pony", "flux1", "flux.1 d"))


@pytest.mark.parametrize(
    ("name", "extra", "title"),
    [
        ("Z-Image", "__ming_image__", "Ming-Image"),
        ("Z-Image", "dec_net.cond_embed.weight", "pixel-space Z-Image"),
        ("Z-Image", "t_embedder_2.mlp.0.weight", "TwinFlow"),
        ("Qwen-Image", "time_text_embed.timestep_embedder_2.linear_1.weight", "TwinFlow"),
        ("Qwen-Image", "transformer_blocks.0.img_mlp.gate_up.weight", r"Qwen-Image 2\.1"),
        ("Qwen-Image", "transformer_blocks.0.img_mlp.w1.weight", "Lens"),
        ("FLUX.2 dev", "double_blocks.0.img_mod.lin.weight", r"FLUX\.1"),
    ],
)
def test_other_models_with_our_sizes_are_told_by_the_weights_that_only_they_have(
    networks, name, extra, title
):
    weights, _ = networks[name]
    assert recognise(weights).id == NETWORKS[name][0]
    other = {**weights, extra: (16, 16)}
    with pytest.raises(I2LError, match=f"this MODEL is not a known base model: it is {title}, for which"):
        recognise(other)
    assert not any(one.matches(other) for one in ARCHITECTURES)


def test_weights_that_are_packed_along_their_rows_do_not_change_the_model(networks):
    """4 bit packs keep the first dimension and halve the second; the host looks at the first alone, too."""
    for name, (id, _, _) in NETWORKS.items():
        weights, linear = networks[name]
        packed = {
            f"{layer}.weight": (weights[f"{layer}.weight"][0], weights[f"{layer}.weight"][1] // 2)
            for layer in linear
        }
        assert recognise({**weights, **packed}).id == id, name
