"""The tables of the base models: every layer of the real networks is found, and its rows fit."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.layouts import LAYOUTS, MODELS, Line, find_model, recognise
from i2l.i2l_core.layouts.flux2 import FLUX2
from i2l.i2l_core.layouts.hidream_o1 import HIDREAM_O1
from i2l.i2l_core.layouts.lumina2 import LUMINA2
from i2l.i2l_core.layouts.qwen_image import QWEN_IMAGE
from i2l.i2l_core.layouts.table import Layout
from i2l.i2l_core.lora import LowRank, Target

FLUX2_SIZES = {  # id: hidden, heads, double, single, text width, guidance; black-forest-labs/flux2, model.py
    "flux2-klein-4b": (3072, 24, 5, 20, 7680, False),
    "flux2-klein-9b": (4096, 32, 8, 24, 12288, False),
    "flux2-dev": (6144, 48, 8, 48, 15360, True),
}


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
    return NextDiT(**config, device="meta", dtype=torch.bfloat16, operations=disable_weight_init)


def meta_flux2(hidden, heads, double, single, text, guidance=False):
    """ComfyUI's own FLUX.2 network on the meta device."""
    from comfy.ldm.flux.model import Flux
    from comfy.ops import disable_weight_init

    sizes = dict(hidden_size=hidden, num_heads=heads, depth=double, depth_single_blocks=single)
    config = {**CONFIGS["flux2"], **sizes, "context_in_dim": text, "guidance_embed": guidance}
    return Flux(**config, device="meta", dtype=torch.bfloat16, operations=disable_weight_init)


def meta_hidream_o1():
    """ComfyUI's own HiDream-O1 network, whose default is the full size, on the meta device."""
    from comfy.ldm.hidream_o1.model import HiDreamO1Transformer
    from comfy.ops import disable_weight_init

    return HiDreamO1Transformer(device="meta", dtype=torch.bfloat16, operations=disable_weight_init)


def meta_qwen_image(**sizes):
    """ComfyUI's own Qwen-Image network, whose default is the full size, on the meta device."""
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.ops import disable_weight_init

    return QwenImageTransformer2DModel(
        **sizes, device="meta", dtype=torch.bfloat16, operations=disable_weight_init
    )


def shapes(network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


def linear_weights(network) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}


def check_coverage(network, layout: Layout, count: int) -> None:
    """Every Linear of the network has lines for all of its rows, once; no line points elsewhere."""
    weights = shapes(network)
    slots = layout.slots(weights)
    assert len(slots) == len({slot.name for slot in slots}) == count
    assert {slot.target.weight for slot in slots} == linear_weights(network)
    covered: dict[str, list[tuple[int, int]]] = {}
    for slot in slots:
        d_out, d_in = weights[f"{slot.target.weight}.weight"]
        start, length = slot.target.rows or (0, d_out)
        assert (slot.d_out, slot.d_in) == (length, d_in)
        covered.setdefault(slot.target.weight, []).append((start, length))
    for weight, runs in covered.items():
        end = 0
        for start, length in sorted(runs):
            assert start == end
            end += length
        assert end == weights[f"{weight}.weight"][0]


def test_z_image_is_covered(host):
    network = meta_lumina2()
    check_coverage(network, LUMINA2, 276)
    assert recognise(shapes(network)).id == "z-image"


def test_z_image_omni_is_a_z_image_with_eyes(host):
    network = meta_lumina2(siglip=1152)
    check_coverage(network, LUMINA2, 276 + 1 + 2 * 7)
    assert recognise(shapes(network)).id == "z-image"


def test_hidream_o1_is_covered(host):
    network = meta_hidream_o1()
    check_coverage(network, HIDREAM_O1, 367)
    assert recognise(shapes(network)).id == "hidream-o1"
    # with the three pairs of mergers and the text head, the 374 of the reference
    assert len(HIDREAM_O1.absent) == 3


@pytest.mark.parametrize(
    "release", [{}, {"default_ref_method": "index_timestep_zero"}, {"use_additional_t_cond": True}]
)
def test_qwen_image_and_its_releases_are_covered(host, release):
    network = meta_qwen_image(**release)
    check_coverage(network, QWEN_IMAGE, 14 * 60 + 6)
    assert recognise(shapes(network)).id == "qwen-image"


def test_relatives_of_qwen_image_are_not_taken_for_it(host):
    """Mage-Flow is the same network in other sizes, Lens and JoyImage are others of the same names."""
    with pytest.raises(
        I2LError, match=r"of the Qwen-Image class, but its sizes \(hidden 3072, layers 12, text 2560\)"
    ):
        recognise(shapes(meta_qwen_image(num_layers=12, joint_attention_dim=2560)))
    with pytest.raises(I2LError, match="another network"):
        recognise({"img_in.weight": (3072, 64), "txt_in.weight": (3072, 3584)})


def test_every_network_is_of_one_class(host):
    networks = [
        meta_lumina2(),
        meta_flux2(*FLUX2_SIZES["flux2-klein-4b"]),
        meta_hidream_o1(),
        meta_qwen_image(),
    ]
    for network, own in zip(networks, LAYOUTS, strict=True):
        weights = shapes(network)
        assert [layout for layout in LAYOUTS if layout.matches(weights)] == [own]


def test_z_image_names_are_the_hosts_own(host):
    """The rows of every name that ComfyUI's LoRA loader knows are the ones in our table."""
    from comfy.utils import z_image_to_diffusers

    network = meta_lumina2()
    theirs = z_image_to_diffusers({"n_layers": 30, "dim": 3840, "n_refiner_layers": 2})
    for slot in LUMINA2.slots(shapes(network)):
        found = theirs[f"{slot.name}.weight"]
        weight, rows = (found, None) if isinstance(found, str) else (found[0], found[1][1:])
        assert Target(weight.removesuffix(".weight"), rows) == slot.target


@pytest.mark.parametrize("id", FLUX2_SIZES)
def test_flux2_is_covered(host, id):
    hidden, heads, double, single, text, guidance = FLUX2_SIZES[id]
    network = meta_flux2(hidden, heads, double, single, text, guidance)
    # 12 lines per double block, 2 per single; around them 9, with guidance 11
    count = 12 * double + 2 * single + 9 + 2 * guidance
    check_coverage(network, FLUX2, count)
    assert recognise(shapes(network)).id == id
    if id == "flux2-klein-4b":
        assert count == 109


def test_flux2_names_are_the_hosts_own_where_it_has_them(host):
    from comfy.utils import flux_to_diffusers

    network = meta_flux2(3072, 24, 5, 20, 7680)
    theirs = flux_to_diffusers({"depth": 5, "depth_single_blocks": 20, "hidden_size": 3072})
    dropped = []
    for slot in FLUX2.slots(shapes(network)):
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


def test_the_tiny_model_shares_the_table(host):
    network = meta_lumina2(dim=256, layers=6, refiners=1, heads=4, text=128)
    check_coverage(network, LUMINA2, 6 * 8 + 8 + 7 + 6)
    assert recognise(shapes(network)).id == "i2l-tiny"


def test_other_models_are_refused_with_the_known_ones(host):
    other_size = shapes(meta_flux2(256, 2, 1, 2, 48))
    with pytest.raises(I2LError, match=r"but its sizes \(hidden 256, double 1, single 2, text 48"):
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
    (slot,) = Layout("t", FLUX2.lines, (), {}).slots(weights)
    layer = LowRank(torch.randn(2, 4), torch.randn(6, 2))
    placed = slot.place(layer)
    assert torch.equal(placed.delta(), torch.cat([layer.delta()[3:], layer.delta()[:3]]))
    assert torch.equal(slot.place(placed).up, layer.up)
    with pytest.raises(I2LError, match="expected a LoRA layer of 6x4, got 6x5"):
        slot.place(LowRank(torch.randn(2, 5), torch.randn(6, 2)))


def test_fused_rows_must_divide():
    with pytest.raises(I2LError, match="10 rows do not divide into 3"):
        Layout("t", (Line("to_q", "qkv", (0, 3)),), (), {}).slots({"qkv.weight": (10, 4)})
    with pytest.raises(I2LError, match="expected a matrix"):
        Layout("t", (Line("to_q", "qkv"),), (), {}).slots({"qkv.weight": (10,)})


def test_the_tables_are_sound():
    for layout in LAYOUTS:
        names = [line.name for line in layout.lines]
        assert len(names) == len(set(names))
        assert all(line.name.count("{}") == line.weight.count("{}") <= 1 for line in layout.lines)
        assert not set(layout.absent) & set(names)
    ids = [model.id for model in MODELS]
    assert len(ids) == len(set(ids))
    assert find_model("z-image") is MODELS[0]
    assert find_model("nothing") is None


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_lora_managers_do_not_mistake_the_name(model):
    """ComfyUI-Lora-Manager shows another base model when it finds one of these anywhere in the name."""
    assert not any(word in model.manager_name.lower() for word in ("il", "sdxl", "pony", "flux1", "flux.1 d"))
