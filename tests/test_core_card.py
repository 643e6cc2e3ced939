"""What nodes report for the card that the front end draws."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch
from PIL import Image

from i2l.i2l_core.card import MOST_THUMBNAILS, THUMBNAIL_SIDE, lora_entry, prediction_card
from i2l.i2l_core.energy import block_energies
from i2l.i2l_core.images import Reference
from i2l.i2l_core.lora import LoRA, LowRank, Target


def layer(d_out: int, d_in: int, rank: int = 3) -> LowRank:
    return LowRank(torch.randn(rank, d_in), torch.randn(d_out, rank))


def lora(*names: str) -> LoRA:
    return LoRA({Target(name): layer(6, 5) for name in names})


def picture_of(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_energy_is_the_squared_norm_of_the_dense_change():
    layers = {
        Target("layers.0.attention.qkv", (0, 4)): layer(4, 8),
        Target("layers.0.attention.qkv", (4, 4)): layer(4, 8),
        Target("layers.0.feed_forward.w1"): layer(16, 8, rank=5),
        Target("final_layer.linear"): layer(2, 8),
    }
    found = block_energies(LoRA(layers))
    dense = {target: part.delta().square().sum().item() for target, part in layers.items()}
    assert found["final_layer"] == pytest.approx(dense.pop(Target("final_layer.linear")), rel=1e-5)
    assert found["layers.0"] == pytest.approx(sum(dense.values()), rel=1e-5)
    assert len(found) == 2


def test_energy_of_half_precision_factors_is_summed_in_single():
    one = LowRank(
        torch.full((1, 4096), 2.0, dtype=torch.float16), torch.full((4096, 1), 2.0, dtype=torch.float16)
    )
    assert block_energies(LoRA({Target("layers.0.w"): one}))["layers.0"] == 16.0 * 4096**2


def test_blocks_are_in_the_order_of_the_model():
    names = ["layers.10.w", "single.0.w", "layers.2.w", "img_in", "double.1.w", "double.0.a.3.w"]
    assert list(block_energies(lora(*names))) == [
        "double.0",
        "double.1",
        "img_in",
        "layers.2",
        "layers.10",
        "single.0",
    ]


def test_shares_add_up_to_one_and_a_strength_does_not_change_them():
    one = lora("layers.0.w", "layers.1.w", "refiner.0.w")
    entry = lora_entry(one, landed=3)
    assert sum(share for _, share in entry["blocks"]) == pytest.approx(1, abs=2e-4)
    assert entry["blocks"] == lora_entry(one.scaled(-2.0))["blocks"]
    assert (entry["role"], entry["rank"], entry["layers"], entry["landed"]) == ("style", 3, 3, 3)


def test_a_lora_of_zeros_has_no_energy_anywhere():
    assert lora_entry(lora("layers.0.w").scaled(0.0), "neutral")["blocks"] == [["layers.0", 0.0]]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 500), (2048, 1000)])
def test_a_thumbnail_is_the_small_middle_of_its_picture(height: int, width: int):
    side = min(height, width)
    pixels = torch.zeros(height, width, 3)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = torch.tensor([1.0, 0.5, 0.0])
    (url,) = prediction_card([Reference(pixels)], lora("layers.0.w"))["thumbnails"]
    found = torch.frombuffer(bytearray(picture_of(url).tobytes()), dtype=torch.uint8).view(-1, 3).float()
    assert len(found) == THUMBNAIL_SIDE**2
    assert (found - torch.tensor([255.0, 128.0, 0.0])).abs().max() < 8
    assert len(url) < 8000


def test_the_card_is_json_and_stays_small():
    references = [Reference(torch.rand(96, 96, 3)) for _ in range(MOST_THUMBNAILS + 3)]
    card = prediction_card(references, lora("layers.0.w"))
    assert card["references"] == len(references)
    assert len(card["thumbnails"]) == MOST_THUMBNAILS
    assert len(json.dumps(card)) < 60_000
    assert card["id"] == prediction_card(references, lora("layers.0.w"))["id"]
    assert card["id"] != prediction_card(references[::-1], lora("layers.0.w"))["id"]
