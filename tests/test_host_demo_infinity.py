"""The demo world's Infinity in the host: the same numbers as in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import random_demo_weights

from i2l.i2l_core.demo import files
from i2l.i2l_core.demo.infinity import BITS, SCALES
from i2l.i2l_core.demo.prompts import tokenise
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.paths import Drawing, Sampling, draw

PROMPT = "one star on the left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_demo_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def demo(host, folder: Path):
    from i2l.i2l_core.host.demo.infinity import load_infinity_demo

    return load_infinity_demo(folder)


@torch.inference_mode()
def test_a_picture_equals_that_of_training(demo, folder: Path):
    from i2l.i2l_core.host.infinity.sample import Request, sample

    positive = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(PROMPT))
    negative = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize("one fish"))
    found = sample(demo.model, Request(positive, negative, seed=5, rows=2))
    network, text = files.load_infinity(folder), files.load_backbone(folder)[1]
    states, avoided = (text(torch.tensor([tokenise(words)])) for words in (PROMPT, "one fish"))
    drawing = Drawing(SCALES, [states], [avoided], rows=2)
    for step in draw(network, drawing, Sampling(seed=5, guidance=3.0, temperature=0.5)):
        last = step.content
    assert last is not None
    assert found.picture.shape == (2, BITS, *SCALES.last)
    torch.testing.assert_close(found.picture, last)
    assert not torch.equal(found.picture[0], found.picture[1])


@torch.inference_mode()
def test_vae_decode_and_encode_are_the_coder(demo, folder: Path):
    coder = files.load_infinity_vae(folder)
    latent = torch.randn(1, BITS, *SCALES.last)
    expected = (coder.decode(latent) + 1) / 2
    torch.testing.assert_close(demo.vae.decode(latent), expected.movedim(1, -1), rtol=1e-4, atol=1e-4)
    picture = torch.rand(1, 128, 128, 3)
    expected = coder.encode(picture.movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(demo.vae.encode(picture), expected, rtol=1e-4, atol=1e-4)


def test_another_aspect_is_refused_and_every_size_is_its_own(demo):
    from i2l.i2l_core.host.infinity.sample import Request, sample

    positive = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(PROMPT))
    with pytest.raises(I2LError, match=r"128 x 128 alone, not 3:2; set aspect to 1:1"):
        sample(demo.model, Request(positive, aspect="3:2"))
    small, large = (sample(demo.model, Request(positive, size=size)).picture for size in ("0.06M", "1M"))
    assert torch.equal(small, large)


@pytest.mark.parametrize("name", [files.INFINITY, files.INFINITY_VAE])
def test_a_missing_or_damaged_file_is_named(host, folder: Path, tmp_path: Path, name: str):
    from i2l.i2l_core.host.demo.infinity import load_infinity_demo

    for path in folder.glob("*.safetensors"):
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(I2LError, match=name):
        load_infinity_demo(tmp_path)
    content = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(I2LError, match=name):
        load_infinity_demo(tmp_path)


def test_copies_for_other_gpus_are_the_same_networks(demo):
    for patcher in (demo.model.patcher, demo.vae.patcher):
        loader, arguments = patcher.cached_patcher_init
        again = loader(*arguments)
        ours, theirs = patcher.model.state_dict(), again.model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
