"""What a template gets on both sides of CFG for what an artist gives: by the examples of each published one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.published import TEMPLATES, published_template, where_to_get
from i2l.i2l_core.predictors.template.inputs import (
    ColourInput,
    InpaintInput,
    Input,
    NoInput,
    PictureInput,
    SettingsInput,
    ValueInput,
    check_picture,
    described,
    mask_of,
    picture_of,
    program_inputs,
)

KLEIN = "Template-KleinBase4B-"
PICTURE = torch.arange(16 * 32 * 3).view(1, 16, 32, 3) % 256 / 255
MASK = (torch.arange(16 * 32).view(1, 16, 32) % 2).float()


def given_to(name: str, given: Input, *names: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    return program_inputs(name, given, names)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Image.Image):
        return (
            found.size == expected.size
            and found.mode == expected.mode
            and found.tobytes() == expected.tobytes()
        )
    return found == expected


# Every published template, as DiffSynth's examples call it (examples/flux2/model_inference/Template-*.py).
SHOWN, MASKED = picture_of(PICTURE), mask_of(MASK)
GRAY = Image.new("RGB", (1024, 1024), (128, 128, 128))
EXAMPLES: list[tuple[str, Input, dict[str, Any], dict[str, Any] | None]] = [
    ("Brightness", ValueInput(0.7), {"scale": 0.7}, {"scale": 0.5}),
    ("Sharpness", ValueInput(0.1), {"scale": 0.1}, {"scale": 0.5}),
    ("Age", ValueInput(80.0), {"age": 80}, {"age": 45}),
    ("SoftRGB", ColourInput(208 / 255, 0.0, 1.0), {"R": 208 / 255, "G": 0, "B": 1}, None),
    ("PandaMeme", NoInput(), {}, {}),
    (
        "ControlNet",
        PictureInput(PICTURE, "a cat"),
        {"image": SHOWN, "prompt": "a cat"},
        {"image": SHOWN, "prompt": ""},
    ),
    (
        "Edit",
        PictureInput(PICTURE, "a hat"),
        {"image": SHOWN, "prompt": "a hat"},
        {"image": SHOWN, "prompt": ""},
    ),
    ("Upscaler", PictureInput(PICTURE, "a"), {"image": SHOWN, "prompt": "a"}, {"image": SHOWN, "prompt": ""}),
    ("ContentRef", PictureInput(PICTURE, "a"), {"image": SHOWN}, {"image": GRAY}),
    (
        "Inpaint",
        InpaintInput(PICTURE, MASK),
        {"image": SHOWN, "mask": MASKED, "force_inpaint": True},
        {"image": SHOWN, "mask": MASKED},
    ),
    (
        "Aesthetic",
        SettingsInput({"lora_ids": [1, 3], "lora_scales": 1.0, "merge_type": "mean"}),
        {"lora_ids": [1, 3], "lora_scales": 1.0, "merge_type": "mean"},
        {"lora_ids": [1, 3], "lora_scales": 1.0, "merge_type": "mean"},
    ),
]


@pytest.mark.parametrize(
    ("name", "given", "positive", "negative"), EXAMPLES, ids=[name for name, *_ in EXAMPLES]
)
def test_as_the_examples_of_the_published_ones(name: str, given: Input, positive: Any, negative: Any):
    for found, expected in zip(given_to(KLEIN + name, given), (positive, negative), strict=True):
        if expected is None or found is None:
            assert found is expected
            continue
        assert found.keys() == expected.keys()
        assert all(same(found[key], expected[key]) for key in expected)


def test_every_published_template_is_in_the_examples():
    known = {known.name.removeprefix(KLEIN): known for known in TEMPLATES}
    assert known.keys() | {"ContentRef"} == {name for name, *_ in EXAMPLES}
    assert all(one.base_model == "flux2-klein-4b" for one in TEMPLATES)
    assert where_to_get(f"{KLEIN}age".lower()) == (
        "get all files of https://modelscope.cn/models/DiffSynth-Studio/Template-KleinBase4B-Age into "
        "models/i2l/Template-KleinBase4B-Age"
    )


def test_equal_sides_are_one_object_so_that_they_run_once():
    for given in (NoInput(), SettingsInput({"a": 1})):
        positive, negative = given_to("mine", given)
        assert positive is negative
    free = InpaintInput(PICTURE, MASK, keep=False)
    positive, negative = given_to(f"{KLEIN}Inpaint", free)
    assert positive is negative
    assert "force_inpaint" not in positive
    positive, negative = given_to("mine", SettingsInput({"a": 1}, {"a": 2}))
    assert (positive, negative) == ({"a": 1}, {"a": 2})


# values


def test_a_value_of_a_template_that_nobody_knows():
    assert given_to("mine", ValueInput(3.0, neutral=1.0), "strength") == (
        {"strength": 3.0},
        {"strength": 1.0},
    )
    assert ValueInput(3.0, 1.0).resolved("mine").factor == 1000
    assert ValueInput(3.0, 1.0, 7.0).resolved("mine").factor == 7
    with pytest.raises(
        I2LError, match="mine is not the name of a published template, so nobody knows its neutral"
    ):
        given_to("mine", ValueInput(3.0), "strength")
    for names, takes in (((), "none by name"), (("a", "b"), "a, b")):
        with pytest.raises(I2LError, match=f"mine: its program takes {takes}, so .* use Template Settings"):
            given_to("mine", ValueInput(3.0, 1.0), *names)


def test_a_published_value_and_what_overrides_it():
    age = published_template(f"{KLEIN}AGE")
    assert age is not None
    assert ValueInput(20.0).resolved(age.name) == age.value
    assert ValueInput(20.0, neutral=40.0, factor=9.0).resolved(age.name).neutral == 40
    assert ValueInput(20.0, factor=9.0).resolved(age.name).factor == 9


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("Brightness", ValueInput(1.5), "value must be a number from 0 to 1, got 1.5"),
        ("Brightness", ValueInput(0.5, neutral=2.0), "neutral must be a number from 0 to 1, got 2"),
        ("Brightness", ValueInput(math.nan), "value must be a number from 0 to 1, got nan"),
        ("Age", ValueInput(0.7), "value must be a number from 1 to 100, got 0.7"),
    ],
)
def test_a_value_out_of_its_range(name: str, given: Input, message: str):
    with pytest.raises(I2LError) as caught:
        given_to(KLEIN + name, given)
    assert str(caught.value) == f"{KLEIN}{name}: {message}"
    with pytest.raises(I2LError, match=r"mine: value must be a number, got inf"):
        given_to("mine", ValueInput(math.inf, 0.0), "a")


def test_a_colour_out_of_its_range():
    with pytest.raises(I2LError, match=r"G must be a number from 0 to 1, got 1\.5"):
        ColourInput(0.0, 1.5, 0.0)


# pictures


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 16, 3), "a template takes one picture, got a batch of 2: choose one with Image From Batch"),
        (
            (1, 24, 32, 3),
            "multiples of 16 pixels, got 32 x 24: use Scale Image to Total Pixels with resolution_steps",
        ),
        ((1, 32, 40, 3), "multiples of 16 pixels, got 40 x 32"),
    ],
)
def test_pictures_that_do_not_do(shape: tuple[int, ...], message: str):
    for make in (
        check_picture,
        lambda picture: PictureInput(picture, "a cat"),
        lambda picture: InpaintInput(picture, torch.zeros(picture.shape[:3])),
    ):
        with pytest.raises(I2LError, match=message):
            make(torch.zeros(shape))


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_prompt_that_is_missing(prompt: str):
    with pytest.raises(I2LError, match="prompt: expected what the picture shall show, got nothing"):
        PictureInput(PICTURE, prompt)


@pytest.mark.parametrize(
    ("shape", "got"), [((1, 16, 16), "16 x 16"), ((2, 32, 16), "2 masks of 16 x 32"), ((32, 16), "16 x 32")]
)
def test_a_mask_of_another_size(shape: tuple[int, ...], got: str):
    with pytest.raises(
        I2LError, match=f"mask: expected one of the picture's size, 16 x 32, got {got} pixels"
    ):
        InpaintInput(torch.zeros(1, 32, 16, 3), torch.zeros(shape))


def test_numbers_become_bytes_by_rounding_and_four_channels_three():
    picture = torch.tensor([0.0, 1.0, 0.499, 0.2]).expand(1, 16, 16, 4)
    assert picture_of(picture).getpixel((3, 3)) == (0, 255, 127)
    assert picture_of(picture * 3 - 1).getpixel((0, 0)) == (0, 255, 127)
    assert mask_of(torch.full((1, 2, 3), 0.502)).getpixel((2, 1)) == (128, 128, 128)


# the right node


@pytest.mark.parametrize(
    ("name", "given", "node"),
    [
        ("Brightness", PictureInput(PICTURE, "a"), "it takes a value: use Template Value"),
        ("SoftRGB", ValueInput(0.7), "it takes a colour: use Template Colour"),
        ("ControlNet", ValueInput(0.7), "it takes a picture and a prompt: use Template Picture"),
        ("Inpaint", PictureInput(PICTURE, "a"), "it takes a picture and a mask: use Template Inpaint"),
        ("Aesthetic", NoInput(), "it takes settings: use Template Settings"),
        ("PandaMeme", ValueInput(0.7), "it takes no inputs: connect Load Template to Apply Template"),
    ],
)
def test_inputs_of_another_kind_name_the_right_node(name: str, given: Input, node: str):
    for check in (program_inputs, described):
        with pytest.raises(I2LError) as caught:
            check(KLEIN + name, given)
        assert str(caught.value) == f"{KLEIN}{name}: {node}"
    positive, _ = given_to(KLEIN + name, SettingsInput({"x": 1}))
    assert positive == {"x": 1}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("Brightness", ValueInput(0.7), "value 0.7, neutral 0.5"),
        ("SoftRGB", ColourInput(1.0, 0.5, 0.0), "colour 255 128 0"),
        ("ControlNet", PictureInput(PICTURE, "a cat"), "picture of 32 x 16 and the prompt 'a cat'"),
        ("Inpaint", InpaintInput(PICTURE, MASK), "picture of 32 x 16 and a mask"),
        ("Aesthetic", SettingsInput({"a": 1, "b": 2}), "settings a, b"),
        ("PandaMeme", NoInput(), "no inputs"),
    ],
)
def test_what_a_node_says(name: str, given: Input, expected: str):
    assert described(KLEIN + name, given) == expected
