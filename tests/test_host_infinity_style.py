"""Styles of pictures and words, and bits that are kept, in the host: equal to the core's, and refused by name."""

from __future__ import annotations

from dataclasses import replace

import infinity_models as models
import pytest
import torch
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.blend import BlendSettings
from i2l.i2l_core.infinity.coder import Coder
from i2l.i2l_core.infinity.files import coder_weights
from i2l.i2l_core.infinity.paths import Drawing, Sampling
from i2l.i2l_core.infinity.scales import scales_of
from i2l.i2l_core.infinity.style import StyleSettings, style_of_pictures
from i2l.i2l_core.references import Reference

SCALES = scales_of(1.5, "0.06M")
TEXT = models.numbers("text", 1, 7, models.TEXT)
OTHER = models.numbers("negative", 1, 11, models.TEXT)
SAMPLING = Sampling(seed=5, temperature=0.7)


def conditioning(states: Tensor, **options) -> list:
    return [[states, {"pooled_output": None, **options}]]


@pytest.fixture(scope="module")
def model(host, tmp_path_factory: pytest.TempPathFactory):
    return models.hosted_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def vae(host):
    return models.hosted_vae(models.CODER_16)


def references() -> tuple[Reference, ...]:
    return Reference(torch.rand(96, 80, 3)), Reference(torch.rand(50, 120, 3), weight=2.0)


@torch.inference_mode()
def test_a_style_of_pictures_is_that_of_the_core(model, vae):
    from i2l.i2l_core.host.infinity.style import PictureStyle, styling_of

    coder = Coder(models.CODER_16)
    coder.load_state_dict(coder_weights(models.coder_weights(models.CODER_16)))
    settings = StyleSettings(BlendSettings(alpha=2.0), structure_end=0.8)
    pictures = references()
    found = styling_of(PictureStyle(vae, pictures, settings), model, Drawing(SCALES, [TEXT]), SAMPLING)
    expected = style_of_pictures(pictures, settings, coder.encode, SCALES, False)
    assert found.part is not None
    assert expected.part is not None
    torch.testing.assert_close(found.part, expected.part, atol=1e-5, rtol=0)
    assert replace(found, part=None) == replace(expected, part=None)


def test_the_own_words_as_a_style_change_nothing_and_others_do(model):
    from i2l.i2l_core.host.infinity.run import run
    from i2l.i2l_core.host.infinity.style import WordStyle, styling_of

    drawing = Drawing(SCALES, [TEXT], rows=2)
    plain = run(model, drawing, SAMPLING)
    own = styling_of(WordStyle(conditioning(TEXT)), model, drawing, SAMPLING)
    assert torch.allclose(run(model, drawing, SAMPLING, own).picture, plain.picture, atol=1e-6)
    other = styling_of(WordStyle(conditioning(OTHER)), model, drawing, SAMPLING)
    assert not torch.allclose(run(model, drawing, SAMPLING, other).picture, plain.picture, atol=1e-2)


@torch.inference_mode()
def test_all_bits_that_are_kept_give_the_picture_back(model, vae):
    from i2l.i2l_core.host.infinity.run import run
    from i2l.i2l_core.host.infinity.style import kept_bits
    from i2l.i2l_core.infinity.bits import features

    height, width = SCALES.pixels
    latent = {"samples": vae.encode(torch.rand(1, height, width, 3))}
    count = len(SCALES.maps)
    drawing = Drawing(SCALES, [TEXT], kept=kept_bits(latent, model.config, SCALES, count))
    assert len(drawing.kept) == count
    found = run(model, drawing, SAMPLING).picture
    torch.testing.assert_close(found, features(latent["samples"], SCALES, False).sums[-1], atol=1e-6, rtol=0)
    assert kept_bits(latent, model.config, SCALES, 0) == ()


@pytest.mark.parametrize(
    ("latent", "count", "message"),
    [
        ({"samples": torch.zeros(1, 4, *SCALES.last)}, 3, "of 8 channels to start from, got"),
        ({"samples": torch.zeros(1, 8, *SCALES.last)}, 3, "this LATENT is empty"),
        ({"samples": torch.ones(1, 8, 5, 5)}, 3, "encode the picture at the size that is drawn"),
        ({"samples": torch.ones(1, 8, *SCALES.last), "noise_mask": torch.ones(1)}, 3, "has a mask"),
        ({"samples": torch.ones(1, 8, *SCALES.last)}, 8, "expected 0 to 7 scales to keep, got 8"),
    ],
)
def test_latents_that_do_not_fit_are_refused(host, latent, count, message):
    from i2l.i2l_core.host.infinity.style import kept_bits

    with pytest.raises(I2LError, match=message):
        kept_bits(latent, models.config(), SCALES, count)


def test_styles_that_do_not_fit_are_refused(model, host):
    from i2l.i2l_core.host.infinity.style import PictureStyle, WordStyle, styling_of
    from i2l.i2l_core.host.infinity.vae import InfinityVAE

    drawing = Drawing(SCALES, [TEXT])
    other = replace(models.CODER_16, bits=16)
    vae = InfinityVAE(other, coder_weights(models.coder_weights(other)))
    with pytest.raises(I2LError, match="this VAE writes 16 bits, the model reads 8"):
        styling_of(PictureStyle(vae, references()), model, drawing, SAMPLING)
    with pytest.raises(I2LError, match="expected a prompt of width 128"):
        styling_of(WordStyle(conditioning(torch.zeros(1, 3, 64))), model, drawing, SAMPLING)
    with pytest.raises(I2LError, match="a prompt of the style, got empty"):
        styling_of(WordStyle([]), model, drawing, SAMPLING)
    late = StyleSettings(BlendSettings(step=9))
    with pytest.raises(I2LError, match="a style scale from 1 to 7, got 9"):
        styling_of(WordStyle(conditioning(TEXT), late), model, drawing, SAMPLING)
