"""The figures behind the picture of a LoRA add up, and it is drawn for every kind of LoRA."""

from __future__ import annotations

import sys

import pytest
import torch

from i2l.i2l_core.base_models import ARCHITECTURES
from i2l.i2l_core.base_models.places import ATTENTION, BOTH, IMAGE, MLP, MODULATION, OTHER, TEXT, position_of
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing import fuse
from i2l.i2l_core.mixing.plot import draw, inner_by_position, kept_by_rank
from i2l.i2l_core.mixing.spectrum import inner

FLUX2 = [
    f"double_blocks.{i}.{part}" for i in range(2) for part in ("img_attn.proj", "txt_attn.proj", "img_mlp.0")
]
FLUX2 += [f"single_blocks.{i}.linear{n}" for i in range(3) for n in (1, 2)] + [
    "img_in",
    "single_stream_modulation.lin",
]
Z_IMAGE = [
    f"{b}.0.{p}"
    for b in ("noise_refiner", "context_refiner", "layers")
    for p in ("attention.out", "feed_forward.w2")
]


def lora(names=FLUX2, rank: int = 3, scale: float = 1.0, **about) -> LoRA:
    return LoRA(
        {Target(n): LowRank(torch.randn(rank, 6), scale * torch.randn(8, rank)) for n in names}, **about
    )


@pytest.mark.parametrize(
    ("weight", "section", "index", "stream", "kind"),
    [
        ("double_blocks.3.img_attn.qkv", "double blocks, image", 3, IMAGE, ATTENTION),
        ("double_blocks.0.txt_mlp.2", "double blocks, text", 0, TEXT, MLP),
        ("single_blocks.11.linear1", "single blocks", 11, "", BOTH),
        ("transformer_blocks.3.ff_context.linear_in", "double blocks, text", 3, TEXT, MLP),
        ("single_transformer_blocks.2.attn.to_qkv_mlp_proj", "single blocks", 2, "", BOTH),
        ("double_stream_modulation_img.lin", "input/output, time layers", 0, IMAGE, MODULATION),
        ("final_layer.adaLN_modulation.1", "input/output, time layers", 0, "", MODULATION),
        ("time_in.in_layer", "input/output, time layers", 0, "", MODULATION),
        ("txt_in", "input/output, time layers", 0, TEXT, OTHER),
        ("noise_refiner.1.feed_forward.w3", "image refiner", 1, IMAGE, MLP),
        ("context_refiner.0.attention.qkv", "text refiner", 0, TEXT, ATTENTION),
        ("layers.29.adaLN_modulation.0", "main blocks", 29, "", MODULATION),
        ("t_embedder.mlp.0", "input/output, time layers", 0, "", MODULATION),
        ("language_model.layers.11.self_attn.q_proj", "main blocks", 11, "", ATTENTION),
        ("language_model.layers.0.mlp.gate_proj", "main blocks", 0, "", MLP),
        ("visual.blocks.3.mlp.linear_fc1", "vision", 3, "", MLP),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input blocks", 4, "", ATTENTION),
        ("something", "input/output, time layers", 0, "", OTHER),
    ],
)
def test_places_of_weights(weight, section, index, stream, kind):
    place = position_of(weight)
    assert (place.section, place.index, place.stream, place.kind) == (section, index, stream, kind)


def test_every_layer_of_the_known_models_inside_a_block_has_a_kind():
    for architecture in ARCHITECTURES:
        for rule in architecture.rules:
            place, same = (
                position_of(rule.weight.replace("{}", "3")),
                position_of(rule.name.replace("{}", "3")),
            )
            assert (place.kind == OTHER) <= (not place.blocks), rule.weight
            assert (place.kind, place.stream) == (same.kind, same.stream), rule.name


def test_energies_and_products_add_up():
    a, b = lora(), lora(FLUX2[2:], rank=2)
    for one, two in ((a, a), (a, b)):
        assert sum(inner_by_position(one, two).values()) == pytest.approx(float(inner(one, two)))
    assert len(inner_by_position(a, a)) == 2 * 3 + 3 + 2


def test_kept_by_rank_is_what_svd_keeps():
    one = lora(rank=4)
    kept = kept_by_rank(one)
    assert kept[-1] == 1
    for rank in (1, 2, 3):
        assert float(kept[rank - 1]) == pytest.approx(fuse.svd([one], [1], rank)[1].energy)
    assert kept_by_rank(lora(scale=0.0)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (lora(base_model="flux2-klein-4b", references=("a", "b")), None),
        (lora(Z_IMAGE, rank=1), None),
        (lora(["only"]), None),
        (lora(scale=0.0), None),
        (lora(), lora(rank=5, scale=-0.1)),
        (lora(["only"]), lora(["other"], scale=0.0)),
    ],
    ids=["flux2", "z-image", "one layer", "zero", "two", "nothing in common"],
)
def test_every_kind_of_lora_is_drawn(one, two):
    picture = draw(one, two, (600, 450))
    assert picture.shape == (450, 600, 3)
    assert picture.dtype is torch.float32
    assert 0 <= picture.min() < picture.max() <= 1
    assert torch.equal(picture, draw(one, two, (600, 450)))
    colours = picture.view(-1, 3).unique(dim=0)
    assert len(colours) > 50  # text and bars, not a blank sheet


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(I2LError, match=r"only holds NaN"):
        draw(lora(["only"], scale=float("nan")))
    with pytest.raises(I2LError, match=r"different base models: a layer of only is 8x6 in one and 8x9"):
        draw(lora(["only"]), LoRA({Target("only"): LowRank(torch.ones(1, 9), torch.ones(8, 1))}))
    with pytest.raises(I2LError, match=r"Z-Image \(z-image\).*FLUX.2 klein 4B"):
        draw(lora(base_model="z-image"), lora(base_model="flux2-klein-4b"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(I2LError, match=r"needs matplotlib.*requirements\.txt") as caught:
        draw(lora())
    assert "\n" not in str(caught.value)
