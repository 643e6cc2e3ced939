"""Style Tone Blend in whole samplings of the host, against the same arithmetic done by hand at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from samplings import Case, cfg_guider, run
from tiny_models import LATENTS, build, close, lora_for

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.references import Reference
from i2l.i2l_core.schedule import ALWAYS, Schedule
from i2l.i2l_core.tone_blend import ToneSettings, blend_tone, tone_of

NETWORKS = ("lumina2", "flux2", "qwen_image", "hidream_o1")
SETTINGS = ToneSettings(1.0, 2)


class FixedVae:
    """Gives a fixed latent for each size: what is tested is what happens to it. Real VAEs: test_server_tone_blend."""

    def __init__(self, name: str, channels: int | None = None) -> None:
        self.shape = LATENTS[name]
        self.channels = channels or self.shape[0]
        self.seen: list[tuple[int, ...]] = []

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(pixels.shape))
        gen = torch.Generator().manual_seed(int(pixels.sum() * 1000) % 1000)
        return torch.randn(1, self.channels, *self.shape[1:], generator=gen)


def picture(seed: int, height: int = 64, width: int = 96) -> Reference:
    return Reference(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)))


def toned(model, vae: Any, schedule: Schedule = ALWAYS, settings: ToneSettings = SETTINGS, seed: int = 1):
    from i2l.i2l_core.host.tone_blend import with_tone

    return with_tone(model, vae, [picture(seed)], settings, schedule)


def flat(latents: torch.Tensor) -> torch.Tensor:
    return latents.squeeze(2) if latents.ndim == 5 else latents


@pytest.fixture(params=NETWORKS)
def name(request, host) -> str:
    return request.param


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_every_step_is_blended_once_after_guidance(name: str, cfg: float):
    """A second function, behind ours, sees what ours made of what the plain model says at the same place."""
    vae, case, seen = FixedVae(name), Case(name, cfg, batch=2), []
    model = build(name)
    before = model.clone()
    before.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    both = toned(before, vae)
    both.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    run(cfg_guider(both, case), case)
    tone = tone_of([flat(model.model.process_latent_in(vae.encode(small(picture(1)))))], [1], SETTINGS)
    assert len(seen) == 6
    for plain, found in zip(seen[::2], seen[1::2], strict=True):
        expected = blend_tone(flat(plain), tone, SETTINGS).view(plain.shape)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (found - plain).abs().max() > 1e-3


def small(reference: Reference) -> torch.Tensor:
    from i2l.i2l_core.host.tone_blend import _small

    return _small(reference)


def test_strength_0_is_the_plain_sampling_and_the_model_does_not_change(name: str):
    case, model = Case(name), build(name)
    plain = run(cfg_guider(model, case), case)
    weights = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    off = run(cfg_guider(toned(model, FixedVae(name), settings=replace(SETTINGS, strength=0.0)), case), case)
    close(off, plain, 2e-5)  # HiDream-O1 keeps keys and values between runs, which changes the order of sums
    changed = run(cfg_guider(toned(model, FixedVae(name)), case), case)
    assert (changed - plain).norm() > 1e-3 * plain.norm()
    close(run(cfg_guider(model, case), case), plain, 2e-5)
    assert "sampler_post_cfg_function" not in model.model_options
    assert all(torch.equal(weight, weights[key]) for key, weight in model.model.state_dict().items())


def test_two_blends_act_one_after_the_other(host):
    case, vae, model = Case("flux2", 1.0), FixedVae("flux2"), build("flux2")
    once = run(cfg_guider(toned(model, vae), case), case)
    twice = run(cfg_guider(toned(toned(model, vae), vae, seed=2), case), case)
    order = run(cfg_guider(toned(toned(model, vae, seed=2), vae), case), case)
    assert (once - twice).norm() > 1e-3 * once.norm()
    assert (order - twice).norm() > 1e-3 * once.norm()


@pytest.mark.parametrize("schedule", [Schedule(0.0, 0.4), Schedule.parse(0.0, 1.0, "0: 1, 0.6: 0, 1: 0")])
def test_outside_of_the_window_nothing_is_touched(host, schedule: Schedule):
    case, seen = Case("lumina2", 1.0), []
    model = build("lumina2")
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    both = toned(model, FixedVae("lumina2"), schedule)
    both.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    run(cfg_guider(both, case), case, steps=8)
    same = [torch.equal(before, after) for before, after in zip(seen[::2], seen[1::2], strict=True)]
    assert same[0] is False
    assert same[-1] is True
    assert same == sorted(same)


def test_it_goes_with_a_live_lora_and_with_asymmetric_guidance(host):
    from samplings import asymmetric

    case, model = Case("flux2"), build("flux2")
    style = asymmetric(model, lora_for(model, 1), lora_for(model, 2))
    vae = FixedVae("flux2")
    styled = run(cfg_guider(style, case), case)
    behind = asymmetric(toned(model, vae), lora_for(model, 1), lora_for(model, 2))
    one, other = (run(cfg_guider(m, case), case) for m in (toned(style, vae), behind))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert (one - styled).norm() > 1e-3 * styled.norm()


def test_a_mask_hides_and_weights_average(host):
    """What the VAE sees of a masked reference is the rest, filled with its mean; weight 0 is not encoded at all."""
    from i2l.i2l_core.host.tone_blend import with_tone

    pixels = picture(1).pixels.clone()
    mask = torch.zeros(64, 96)
    mask[:, :48] = 1
    hidden = pixels.clone()
    hidden[:, 48:] = 0.9
    vae, model = FixedVae("flux2"), build("flux2")
    assert torch.equal(small(Reference(pixels, mask=mask)), small(Reference(hidden, mask=mask)))
    with_tone(model, cast(Any, vae), [Reference(pixels, 2.0), Reference(hidden, 0.0)], SETTINGS, ALWAYS)
    assert vae.seen == [(1, 64, 96, 3)]


def test_large_references_are_made_small_first(host):
    assert small(picture(1, 1500, 900)).shape == (1, 512, 304, 3)
    assert small(picture(1, 20, 20)).shape == (1, 16, 16, 3)


def test_other_latents_are_refused_by_what_is_wrong(host):
    from i2l.i2l_core.host.tone_blend import with_tone

    case, model = Case("flux2"), build("flux2")
    wrong = toned(model, FixedVae("flux2", channels=4))
    with pytest.raises(I2LError, match="the VAE makes latents of 4 channels, the MODEL samples 128"):
        run(cfg_guider(wrong, case), case)

    class Video:
        def encode(self, pixels):
            return torch.randn(1, 16, 3, 8, 8)

    with pytest.raises(I2LError, match="video, sound or 3D"):
        with_tone(build("qwen_image"), cast(Any, Video()), [picture(1)], SETTINGS, ALWAYS)
    layered = Case("qwen_image_layered")
    with pytest.raises(I2LError, match="video, sound or 3D"):
        run(cfg_guider(toned(build("qwen_image_layered"), FixedVae("qwen_image")), layered), layered)
