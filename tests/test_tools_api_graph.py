from __future__ import annotations

import copy
from typing import Any

import pytest

from i2l.tools.api_graph import (
    PromptError,
    only_pictures,
    pictures_of,
    text_of,
    upstream,
    with_pictures,
    with_text,
    without_lora,
)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture
def prompt() -> dict[str, dict[str, Any]]:
    return {
        "1": node("LoadI2LDemo"),
        "2": node("LoadImage", image="a_1.png"),
        "3": node("LoadImage", image="a_2.png"),
        "4": node(
            "ImagesToLoRA", predictor=["1", 3], **{"images.image0": ["2", 0], "images.image1": ["3", 0]}
        ),
        "5": node("ApplyPredictedLoRA", model=["1", 0], lora=["4", 0], strength=1.0),
        "6": node("CLIPTextEncode", clip=["1", 1], text="a star"),
        "7": node("CLIPTextEncode", clip=["1", 1], text="bad"),
        "8": node("Guidance", conditioning=["6", 0]),
        "9": node("KSampler", model=["5", 0], positive=["8", 0], negative=["7", 0], seed=3),
        "10": node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="x"),
        "12": node("SavePredictedLoRA", lora=["4", 0], name="mine"),
    }


@pytest.fixture(autouse=True)
def _unchanged(prompt):
    """No function writes into what it is given."""
    before = copy.deepcopy(prompt)
    yield
    assert prompt == before


def test_text_is_found_through_other_nodes_and_changed_only_there(prompt):
    assert text_of(prompt) == "a star"
    changed = with_text(prompt, "two fish")
    assert changed["6"]["inputs"]["text"] == "two fish"
    assert changed["7"] == prompt["7"]


def test_only_what_makes_the_picture_is_kept(prompt):
    kept, output = only_pictures(prompt)
    assert output == "11"
    assert set(kept) == set(prompt) - {"12"}


def test_pictures_of_the_prediction(prompt):
    assert pictures_of(prompt) == ["a_1.png", "a_2.png"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_pictures_can_take_their_place(prompt, count):
    names = [f"b_{number}.png" for number in range(count)]
    changed = with_pictures(prompt, names)
    assert pictures_of(changed) == names
    assert changed["4"]["inputs"]["predictor"] == ["1", 3]


def test_without_lora_the_sampler_gets_the_bare_model(prompt):
    bare = without_lora(prompt)
    assert bare["9"]["inputs"]["model"] == ["1", 0]
    assert not {"2", "3", "4", "5", "12"} & set(bare)
    assert bare["9"]["inputs"]["seed"] == 3


def test_two_loras_in_a_row_are_both_left_out(prompt):
    stacked = {**prompt, "13": node("ApplyPredictedLoRA", model=["5", 0], lora=["4", 0], strength=0.5)}
    stacked["9"] = node("KSampler", **{**prompt["9"]["inputs"], "model": ["13", 0]})
    assert without_lora(stacked)["9"]["inputs"]["model"] == ["1", 0]


def test_upstream_is_nearest_first_and_ends_in_circles():
    circle = {"a": node("X", x=["b", 0]), "b": node("Y", x=["a", 0])}
    assert upstream(circle, "a") == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text_of, "no CLIPTextEncode"),
        (only_pictures, "saves no picture"),
        (without_lora, "applies no LoRA"),
        (lambda prompt: with_pictures(prompt, ["x.png"]), "no ImagesToLoRA"),
    ],
)
def test_what_is_missing_is_named(change, message):
    with pytest.raises(PromptError, match=message):
        change({"1": node("LoadImage", image="a.png")})
