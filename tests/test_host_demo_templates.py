"""The demo's FLUX.2 with its predictor and templates, as they ship, through the host's nodes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from i2l.i2l_core.demo import files
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.template.inputs import PictureInput, ValueInput
from i2l.tools.host import ROOT


@pytest.fixture(scope="module")
def demo(host):
    from i2l.i2l_core.host.demo.flux2 import load_flux2_demo

    with torch.inference_mode():
        return load_flux2_demo()


def structure_picture() -> torch.Tensor:
    with Image.open(ROOT / "workflows" / "references" / "structure.png") as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(1, image.height, image.width, 3).float() / 255


def made(template, given):
    return template.make(given, lambda done, of: None)


@torch.inference_mode()
def test_structure_gives_what_training_used(demo):
    """The file, the VAE node and the CLIP node on one side; the training's own network on the other."""
    from i2l.i2l_core.demo.prompts import tokenise
    from i2l.i2l_core.train.demo_stages import structure

    picture = structure_picture()
    found = made(demo.structure, PictureInput(picture, "one tree on the left", demo.vae, demo.clip))
    control = structure.load(files.WEIGHTS)
    text = files.load_backbone()[1]
    encoder, _ = files.load_vae()
    seen = encoder(picture.movedim(-1, 1)) / structure.HOST_SCALE + structure.HOST_SHIFT
    for side, words in ((found.positive, "one tree on the left"), (found.negative, "")):
        expected = control.keys_values(seen, text(torch.tensor([tokenise(words)])))
        for name, pair in expected.items():
            for part, truth in zip(side.blocks[name], pair, strict=True):
                assert (part.float() - truth).norm() <= 2e-3 * truth.norm(), name


@torch.inference_mode()
def test_brightness_has_its_neutral_value_on_the_negative_side(demo):
    found = made(demo.brightness, ValueInput(0.8))
    neutral = made(demo.brightness, ValueInput(0.5))
    assert neutral.positive is neutral.negative
    for name, pair in neutral.positive.blocks.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, found.negative.blocks[name], strict=True))
    assert not torch.equal(found.positive.blocks["double_0"][0], found.negative.blocks["double_0"][0])
    with pytest.raises(I2LError, match="value must be a number from 0 to 1"):
        demo.brightness.check(ValueInput(1.5))


@torch.inference_mode()
def test_the_predictor_is_for_this_model(demo):
    from i2l.i2l_core.host.patch import fitting
    from i2l.i2l_core.references import Reference

    predicted = demo.predictor.predict([Reference(torch.rand(128, 128, 3))])
    assert predicted.lora.base_model == "i2l-tiny-flux2"
    assert fitting(predicted.lora, demo.model).lora.n_layers == 20
    assert demo.predictor.describe().startswith("i2L predictor for i2l-tiny-flux2: rank 4, 20 layers")


@pytest.mark.parametrize(
    ("prefixes", "takes"), [(("enc_r.", "enc_g.", "enc_b."), "colour"), (("x.", "y.", "z."), None)]
)
def test_three_values_of_no_known_order_are_left_to_the_program(host, tmp_path, prefixes, takes):
    from kv_templates import value_file

    from i2l.i2l_core.host.templates.native import native_template

    found = native_template(value_file(tmp_path / "model.safetensors", prefixes=prefixes), "ours")
    assert (found.takes if found else None) == takes
