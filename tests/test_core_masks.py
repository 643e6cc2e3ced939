"""Masks of every type: those of 0 and 1 mean the same everywhere, and any other scale is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.template.inputs import InpaintInput, check_picture, mask_of, program_inputs
from i2l.i2l_core.ranges import mask_values
from i2l.i2l_core.references import references_with

SURFACE = Path(__file__).resolve().parent / "surface.json"
IMAGE = torch.rand(1, 16, 32, 3)
HALF = torch.zeros(1, 16, 32)
HALF[..., 16:] = 1


def of_reference(mask: Tensor) -> Tensor:
    found = references_with(IMAGE, 1.0, mask)[0].full_mask
    assert found is not None
    return found


def of_live_lora(mask: Tensor) -> Tensor:
    from i2l.i2l_core.host.live.loras import checked_mask

    return checked_mask(mask)


def of_inpainting(mask: Tensor) -> Tensor:
    found, _ = program_inputs("Template-KleinBase4B-Inpaint", InpaintInput(IMAGE, mask))
    return torch.frombuffer(bytearray(found["mask"].convert("L").tobytes()), dtype=torch.uint8) / 255


def of_settings(mask: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(mask_of(mask).convert("L").tobytes()), dtype=torch.uint8) / 255


# node -> what it makes of its mask; Style Region and Apply Predicted LoRA check theirs alike
NODES: dict[str, Callable[[Tensor], Tensor]] = {
    "StyleReference": of_reference,
    "ApplyPredictedLoRA": of_live_lora,
    "StyleRegion": of_live_lora,
    "TemplateInpaint": of_inpainting,
    "TemplateSettings": of_settings,
}
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def test_every_node_with_a_mask_is_here():
    nodes = json.loads(SURFACE.read_text(encoding="utf-8"))
    assert {name for name, node in nodes.items() if any(" MASK" in line for line in node["inputs"])} == set(
        NODES
    )


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("dtype", [*WHOLE, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_0_and_1_of_any_type_are_black_and_white(host: object, node: str, dtype: torch.dtype):
    found = NODES[node](HALF.to(dtype))
    assert found.dtype == torch.float32
    assert torch.equal(found.flatten(), HALF.flatten())


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ((HALF * 255).byte(), "has values from 0 to 255, expected 0 to 1; divide it by 255"),
        ((HALF * 255).long(), "has values from 0 to 255, expected 0 to 1; divide it by 255"),
        ((HALF * 2).int(), "has values from 0 to 2, expected 0 to 1"),
        (-HALF.int(), "has values from -1 to 0, expected 0 to 1"),
        (HALF * 255, "has values from 0 to 255, expected 0 to 1; divide it by 255"),
        (HALF * float("nan"), "holds NaN or infinite values"),
        (HALF.to(torch.complex64), "holds torch.complex64, expected numbers from 0 to 1"),
    ],
)
def test_another_scale_is_refused_in_one_line(host: object, node: str, mask: Tensor, said: str):
    with pytest.raises(I2LError, match=f"mask:? .*{said}") as caught:
        NODES[node](mask)
    assert "\n" not in str(caught.value)


def test_a_mask_is_not_changed():
    mask = HALF.clone()
    assert torch.equal(mask_values("mask: it", mask), mask)
    assert torch.equal(mask, HALF)


def test_a_template_takes_one_mask_and_a_picture_of_0_to_1():
    with pytest.raises(I2LError, match=r"expected one MASK .*got \(2, 16, 32\)"):
        mask_of(HALF.expand(2, -1, -1))
    with pytest.raises(I2LError, match=r"the picture has values from .* to 25\d\.?\d*, expected 0 to 1"):
        check_picture(IMAGE * 255)
