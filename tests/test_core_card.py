"""What nodes report for the card that the front end draws."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch
from PIL import Image

from i2l.i2l_core.card import MOST_THUMBNAILS, THUMBNAIL_SIDE, lora_entry, prediction_card
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.references import Reference


def layer(d_out: int, d_in: int, rank: int = 3) -> LowRank:
    return LowRank(torch.randn(rank, d_in), torch.randn(d_out, rank))


def lora(*names: str) -> LoRA:
    return LoRA({Target(name): layer(6, 5) for name in names})


def picture_of(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_shares_are_those_of_the_squared_norms_of_the_dense_changes():
    layers = {
        Target("layers.0.attention.qkv", (0, 4)): layer(4, 8),
        Target("layers.0.attention.qkv", (4, 4)): layer(4, 8),
        Target("layers.0.feed_forward.w1"): layer(16, 8, rank=5),
        Target("layers.1.feed_forward.w1"): layer(16, 8),
        Target("final_layer.linear"): layer(2, 8),
    }
    dense = {target: part.delta().square().sum().item() for target, part in layers.items()}
    by_block = [
        sum(energy for target, energy in dense.items() if target.weight.startswith(block))
        for block in ("layers.0", "layers.1", "final_layer")
    ]
    found = lora_entry(LoRA(layers))["blocks"]
    assert [(section, index) for section, index, _ in found] == [
        ("main blocks", 0),
        ("main blocks", 1),
        ("input/output, time layers", 0),
    ]
    shares = [energy / sum(by_block) for energy in by_block]
    assert [share for _, _, share in found] == pytest.approx(shares, abs=1e-4)


def test_blocks_are_in_the_order_in_which_a_picture_passes_through_them():
    names = ["layers.10.w", "noise_refiner.0.w", "layers.2.w", "img_in", "context_refiner.1.w"]
    assert [(section, index) for section, index, _ in lora_entry(lora(*names))["blocks"]] == [
        ("text refiner", 1),
        ("image refiner", 0),
        ("main blocks", 2),
        ("main blocks", 10),
        ("input/output, time layers", 0),
    ]


def test_shares_add_up_to_one_and_a_strength_does_not_change_them():
    one = lora("layers.0.w", "layers.1.w", "refiner.0.w")
    entry = lora_entry(one, landed=3)
    assert sum(share for _, _, share in entry["blocks"]) == pytest.approx(1, abs=2e-4)
    assert entry["blocks"] == lora_entry(one.scaled(-2.0))["blocks"]
    assert (entry["role"], entry["rank"], entry["layers"], entry["landed"]) == ("style", 3, 3, 3)


def test_a_lora_of_zeros_has_no_energy_anywhere():
    assert lora_entry(lora("layers.0.w").scaled(0.0), "neutral")["blocks"] == [["main blocks", 0, 0.0]]


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
