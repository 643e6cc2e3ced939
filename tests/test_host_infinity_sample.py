"""A whole drawing from what a node is given: text encoder, model and VAE of the host together."""

from __future__ import annotations

from typing import Any

import infinity_models as models
import pytest
import torch
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.paths import Drawing, Sampling, draw
from i2l.i2l_core.infinity.scales import RATIOS, scales_of
from i2l.i2l_core.infinity.style import StyleSettings
from i2l.i2l_core.references import Reference

SMALL: dict[str, Any] = {"size": "0.06M", "aspect": "2:3"}


@pytest.fixture(scope="module")
def model(host, tmp_path_factory: pytest.TempPathFactory):
    return models.hosted_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def vae(host):
    return models.hosted_vae(models.CODER_16)


@pytest.fixture(scope="module")
def clip(host):
    """A text encoder of the model's width, with random weights."""
    from i2l.i2l_core.host.infinity.text import TextConfig, _meta, build_clip

    config = TextConfig(models.TEXT, 16, 64, 4, 2)
    torch.manual_seed(2)
    weights: dict[str, Tensor] = {
        name: torch.randn(tensor.shape) / tensor.shape[-1] ** 0.5
        for name, tensor in _meta(config).state_dict().items()
    }
    return build_clip(config, weights, dtype=torch.float32)


def encoded(clip: Any, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@torch.inference_mode()
def test_words_become_a_picture_in_the_style_of_another(clip, model, vae):
    from i2l.i2l_core.host.infinity.sample import Request, sample
    from i2l.i2l_core.host.infinity.style import PictureStyle

    words = encoded(clip, "a castle")
    style = PictureStyle(vae, (Reference(torch.rand(64, 64, 3)),))
    plain = sample(model, Request(words, **SMALL))
    styled = sample(model, Request(words, style=style, **SMALL), vae)
    scales = scales_of(1.5, "0.06M")
    image = vae.decode(styled.picture)
    assert image.shape == (1, *scales.pixels, 3)
    assert image.isfinite().all()
    assert styled.content is not None
    assert torch.equal(styled.content, plain.picture)
    assert not torch.equal(styled.picture, plain.picture)
    assert plain.content is None
    sampling = Sampling(guidance=3.0, temperature=0.5)
    last: Any = list(draw(model.network, Drawing(scales, [words[0][0]]), sampling))[-1]
    assert torch.equal(plain.picture, last.content)
    free = PictureStyle(vae, style.references, StyleSettings(structure_end=0.6))
    assert sample(model, Request(words, style=free, **SMALL)).content is None


@torch.inference_mode()
def test_a_picture_is_restyled(clip, model, vae):
    from i2l.i2l_core.host.infinity.sample import Request, Start, sample
    from i2l.i2l_core.host.infinity.style import WordStyle

    words = encoded(clip, "a castle")
    height, width = scales_of(1.5, "0.06M").pixels
    start = Start({"samples": vae.encode(torch.rand(1, height, width, 3))}, 7)
    style = WordStyle(encoded(clip, "neon lights"))
    found = sample(model, Request(words, style=style, start=start, **SMALL))
    again = sample(model, Request(words, start=start, **SMALL))
    assert found.content is not None
    assert torch.equal(found.content, again.picture)
    assert not torch.equal(found.picture, again.picture)


def test_aspects_have_the_shapes_they_say(host):
    from i2l.i2l_core.host.infinity.sample import ASPECTS

    assert tuple(ASPECTS.values()) == RATIOS
    for name, ratio in ASPECTS.items():
        width, height = map(int, name.split(":"))
        tall, wide = scales_of(ratio, "1M").pixels
        assert wide / tall == pytest.approx(width / height, rel=0.03)


def test_guidance_along_the_scales(host):
    from i2l.i2l_core.host.infinity.sample import guidance_of

    assert guidance_of(3.0, "", 4) == [3.0] * 4
    assert guidance_of(3.0, "0: 1, 1: 0", 5) == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0])


def test_what_does_not_fit_is_refused(clip, model, vae):
    from i2l.i2l_core.host.infinity.sample import Request, Start, sample

    words = encoded(clip, "a castle")
    for request, message in (
        (Request(words, aspect="9:16"), "expected an aspect of"),
        (Request(words, size="2M"), "expected a size of"),
        (Request([]), "got empty CONDITIONING"),
        (Request([[torch.zeros(1, 3, 4096), {}]], **SMALL), "flan-t5-xl gives 2048, T5-XXL 4096"),
        (
            Request(words, start=Start({"samples": torch.zeros(1, 16, 8, 8)}, 3), **SMALL),
            "use VAE Encode with",
        ),
    ):
        with pytest.raises(I2LError, match=message):
            sample(model, request)
