"""The demo world in the host: the same numbers as in training, through the host's own nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import random_demo_weights

from i2l.i2l_core.demo import files
from i2l.i2l_core.demo.autoencoder import HOST_SCALE, HOST_SHIFT
from i2l.i2l_core.demo.content import contents
from i2l.i2l_core.demo.prompts import tokenise
from i2l.i2l_core.demo.sampler import Sampling
from i2l.i2l_core.errors import I2LError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_demo_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def world(host, folder: Path):
    from i2l.i2l_core.host.demo.world import load_demo

    with torch.inference_mode():
        return load_demo(folder)


def conditioning(clip, text: str):
    """What the stock CLIP Text Encode gives."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@torch.inference_mode()
def test_one_forward_equals_that_of_training(world, folder: Path):
    """Text through CLIP, conds and apply_model as a KSampler runs them, cond and uncond in one batch."""
    import comfy.sample
    import comfy.samplers

    seen = []

    def record(apply_model, options):
        given = {"x": options["input"].clone(), "sigma": options["timestep"].clone()}
        context = options["c"]["c_crossattn"].clone()
        out = apply_model(options["input"], options["timestep"], **options["c"])
        seen.append((given["x"], given["sigma"], context, out.clone(), options["cond_or_uncond"]))
        return out

    model = world.model.clone()
    model.set_model_unet_function_wrapper(record)
    positive, negative = (conditioning(world.clip, text) for text in ("two fish on the left", ""))
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 7)
    comfy.sample.sample(model, noise, 3, 3.0, "euler", "simple", positive, negative, latent, seed=7)

    backbone, text = files.load_backbone(folder)
    assert len(seen) == 3  # one batched forward a step
    for x, sigma, context, denoised, rows in seen:
        assert sorted(rows) == [0, 1]
        words = [tokenise("two fish on the left" if row == 0 else "") for row in rows]
        torch.testing.assert_close(context, text(torch.tensor(words)), rtol=0, atol=1e-6)
        velocity = backbone(x, sigma, context)
        expected = x - sigma[:, None, None, None] * velocity
        assert (denoised - expected).norm() <= 1e-5 * expected.norm()
        host_velocity = (x - denoised) / sigma[:, None, None, None]
        assert (host_velocity - velocity).norm() <= 2e-5 * velocity.norm()


@torch.inference_mode()
def test_velocity_alone_equals_that_of_training(world, folder: Path):
    """The network without the sampling around it, at every noise level."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([world.model])
    backbone, text = files.load_backbone(folder)
    sigma = torch.linspace(0, 1, 5)
    x, context = torch.randn(5, 16, 16, 16), text(torch.tensor([tokenise("one star")] * 5))
    ours = backbone(x, sigma, context)
    theirs = world.model.model.diffusion_model(x, sigma, context, 16)
    assert (ours - theirs).norm() <= 1e-5 * ours.norm()


@torch.inference_mode()
def test_vae_encodes_and_decodes_as_in_training(world, folder: Path):
    encoder, decoder = files.load_vae(folder)
    pictures = torch.rand(2, 32, 48, 3)
    bchw = pictures.permute(0, 3, 1, 2)  # BHWC -> BCHW
    latents = world.vae.encode(pictures)
    torch.testing.assert_close((latents - HOST_SHIFT) * HOST_SCALE, encoder(bchw), rtol=1e-4, atol=1e-4)
    model_latents = world.model.model.process_latent_in(latents)
    torch.testing.assert_close(model_latents, encoder(bchw), rtol=1e-4, atol=1e-4)
    expected = decoder(encoder(bchw)).clamp(0, 1).permute(0, 2, 3, 1)  # BCHW -> BHWC
    torch.testing.assert_close(world.vae.decode(latents), expected, rtol=1e-4, atol=1e-4)
    assert world.vae.latent_channels == 16


def test_brackets_and_weights_of_words_are_understood(world):
    plain = world.clip.tokenize("two fish on the left")
    assert world.clip.tokenize("(two fish:1.2) on ((the)) left") == plain


def test_model_is_recognised_and_the_predictor_is_for_it(world):
    from i2l.i2l_core.base_models import recognise
    from i2l.i2l_core.host.patch import weights_of

    assert recognise(weights_of(world.model)).id == world.predictor.loaded.base_model == "i2l-tiny"


@torch.inference_mode()
def test_model_survives_unloading_and_fresh_copies(world):
    import comfy.model_management

    before = {k: v.clone() for k, v in world.model.model.state_dict().items()}
    comfy.model_management.load_models_gpu([world.model])
    comfy.model_management.unload_all_models()
    assert all(torch.equal(v, before[k]) for k, v in world.model.model.state_dict().items())
    copy = world.model.clone(force_deepcopy=True)
    assert copy.model is not world.model.model
    assert all(torch.equal(v, before[k]) for k, v in copy.model.state_dict().items())
    text = world.clip.patcher.clone(force_deepcopy=True)
    assert text.model is not world.clip.patcher.model
    assert world.vae.patcher.clone(force_deepcopy=True).model is not world.vae.patcher.model


@pytest.mark.parametrize("name", [files.BACKBONE, files.VAE, files.PREDICTOR])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_or_damaged_weights_are_named(host, tmp_path: Path, folder: Path, name: str, damage: str):
    from i2l.i2l_core.host.demo.world import load_demo

    for path in folder.iterdir():
        content = path.read_bytes()
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
        elif damage == "truncated":
            (tmp_path / path.name).write_bytes(content[: len(content) // 2])
    with pytest.raises(I2LError, match=name) as caught:
        load_demo(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [7, 12, 20])
@pytest.mark.parametrize("denoise", [1.0, 0.75, 0.4])
def test_noise_levels_are_those_of_the_host(world, steps: int, denoise: float):
    import comfy.samplers

    sampler = comfy.samplers.KSampler(world.model, steps, "cpu", "euler", "simple", denoise)
    torch.testing.assert_close(Sampling(steps, denoise=denoise).sigmas(), sampler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.parametrize("flux2", [False, True])
@torch.inference_mode()
def test_previews_have_the_colours_of_the_picture(host, flux2: bool):
    import latent_preview

    from i2l.i2l_core.demo.render import render
    from i2l.i2l_core.demo.style import sample_style
    from i2l.i2l_core.host.demo.flux2 import load_flux2
    from i2l.i2l_core.host.demo.world import load_model

    model = (load_flux2 if flux2 else load_model)(files.WEIGHTS)
    rng = np.random.default_rng(3)
    picture = torch.from_numpy(render(contents(False)[7], sample_style(rng, False), rng))
    latent = files.load_vae()[0](picture.permute(2, 0, 1)[None])
    form = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(
        form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape
    )
    shown = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latent))).float() / 255
    colours = picture.view(16, 8, 16, 8, 3).mean((1, 3))
    torch.testing.assert_close(shown, colours, atol=0.01, rtol=0)
