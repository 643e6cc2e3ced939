"""Infinity's picture coder as a VAE of the host, through the host's own nodes, against numbers of the reference."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import infinity_models as models
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.coder import Coder
from i2l.i2l_core.infinity.files import coder_weights
from i2l.i2l_core.infinity.scales import Scales

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).parent / "data" / "infinity_fixtures.safetensors"
CELL = models.CODER.cell


@pytest.fixture(scope="module")
def vae(host, tmp_path_factory: pytest.TempPathFactory):
    from i2l.i2l_core.host.infinity.vae import load_vae

    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(models.coder_weights(models.CODER), path)
    return load_vae(path)


@pytest.fixture(scope="module")
def coder() -> Coder:
    coder = Coder(models.CODER)
    coder.load_state_dict(coder_weights(models.coder_weights(models.CODER)))
    return coder


def as_image(picture: Tensor) -> Tensor:
    """(B, 3, H, W) from -1 to 1 -> IMAGE (B, H, W, 3) from 0 to 1."""
    return ((picture + 1) / 2).movedim(1, -1)


@torch.inference_mode()
def test_vae_decode_and_encode_are_the_coder(vae, coder):
    nodes: Any = importlib.import_module("nodes")  # the host's
    latent, picture = torch.randn(2, 8, 6, 9), torch.rand(2, 3, 24, 36) * 2 - 1
    (images,) = nodes.VAEDecode().decode(vae, {"samples": latent})
    torch.testing.assert_close(images, as_image(coder.decode(latent)), atol=1e-6, rtol=0)
    (encoded,) = nodes.VAEEncode().encode(vae, as_image(picture))
    torch.testing.assert_close(encoded["samples"], coder.encode(picture), atol=1e-5, rtol=0)
    assert encoded["samples"].dtype == torch.float32


@torch.inference_mode()
def test_decode_equals_the_reference_implementation(vae):
    expected = load_file(FIXTURES)
    pictures = vae.decode(expected["coder.sum"].float())
    torch.testing.assert_close(pictures, as_image(expected["coder.picture"]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_encoded_pictures_have_the_features_of_the_coder(vae, coder):
    scales = Scales(((1, 1), (2, 2), (5, 4), (10, 8)), (10, 8))
    picture = torch.rand(1, 3, 10 * CELL, 8 * CELL) * 2 - 1
    found = features(vae.encode(as_image(picture)), scales, False)
    expected = features(coder.encode(picture), scales, False)
    assert all(torch.equal(*pair) for pair in zip(found.bits, expected.bits, strict=True))


@torch.inference_mode()
def test_tiles_give_the_whole_picture_away_from_their_edges(vae):
    nodes: Any = importlib.import_module("nodes")
    latent = torch.randn(1, 8, 32, 32)
    whole = vae.decode(latent)
    (tiled,) = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, tile_size=96, overlap=24)
    assert tiled.shape == whole.shape
    # group norms of a tile are its own, so the two differ everywhere, but little
    assert (tiled - whole).abs().mean() <= 0.1 * whole.std()
    (one,) = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, tile_size=256, overlap=64)
    torch.testing.assert_close(one, whole, atol=1e-5, rtol=0)


def test_sizes_are_those_of_the_file(vae):
    assert vae.latent_channels == 8
    assert vae.spacial_compression_encode() == vae.spacial_compression_decode() == CELL
    assert vae.vae_dtype == torch.float32
    assert vae.get_sd().keys() == Coder(models.CODER, device="meta").state_dict().keys()
    assert not vae.is_dynamic()
    odd = vae.encode(torch.rand(1, 27, 38, 3))  # cropped, as the host does it
    assert odd.shape == (1, 8, 6, 9)


def test_the_warning_of_the_host_is_for_others(host, caplog):
    import comfy.sd

    from i2l.i2l_core.host.infinity.vae import InfinityVAE

    with caplog.at_level(logging.WARNING):
        InfinityVAE(models.CODER, coder_weights(models.coder_weights(models.CODER)))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        comfy.sd.VAE(sd={})
    assert "No VAE weights" in caplog.text


@torch.inference_mode()
def test_latents_of_other_models_are_refused(vae):
    with pytest.raises(I2LError, match="a latent of 8 channels, got 16; use the LATENT and the VAE of one"):
        vae.decode(torch.zeros(1, 16, 4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.conv_in.conv.bias": None}, r"lacks decoder\.conv_in\.bias"),
        ({"encoder.extra.weight": torch.zeros(1)}, "also has encoder.extra"),
        ({"decoder.conv_in.conv.bias": torch.full((64,), float("inf"))}, "NaN or infinite"),
    ],
)
def test_other_files_are_refused(host, tmp_path: Path, change: dict[str, Tensor | None], message: str):
    from i2l.i2l_core.host.infinity.vae import load_vae

    changed = {**models.coder_weights(models.CODER), **change}
    path = tmp_path / "vae.safetensors"
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(I2LError, match=message) as caught:
        load_vae(path)
    assert str(caught.value).startswith("vae.safetensors: ")


def test_files_and_vaes_of_other_kinds_are_named(host, tmp_path: Path):
    from i2l.i2l_core.host.infinity.vae import infinity_vae, load_vae

    save_file(models.released_weights(), tmp_path / "model.safetensors")
    with pytest.raises(I2LError, match="this is an Infinity transformer"):
        load_vae(tmp_path / "model.safetensors")
    nested = {"vae": models.coder_weights(models.CODER), "ema": {}, "discriminator": {}}
    torch.save(nested, tmp_path / "vae.pth")
    assert infinity_vae(load_vae(tmp_path / "vae.pth")).config == models.CODER
    with pytest.raises(I2LError, match="use Load Infinity VAE"):
        infinity_vae(object())


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
@torch.inference_mode()
def test_memory_in_use_is_within_what_is_asked_for(host, coder, monkeypatch):
    from i2l.i2l_core.host.infinity.vae import nbytes

    monkeypatch.syspath_prepend(str(ROOT))
    peak_bytes = importlib.import_module("bench._measure").peak_bytes
    asked = nbytes(models.CODER, 128, 192)
    used = {
        "encode": peak_bytes(lambda: coder.encode(torch.zeros(1, 3, 128, 192)), torch.device("cpu")),
        "decode": peak_bytes(
            lambda: coder.decode(torch.zeros(1, 8, 128 // CELL, 192 // CELL)), torch.device("cpu")
        ),
    }
    assert 0.6 * asked <= max(used.values()) <= asked, used
