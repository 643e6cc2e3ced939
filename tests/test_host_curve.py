"""Live LoRAs whose strength follows a curve, against models that are patched anew before every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samplings import Case, cfg_guider
from tiny_models import LATENTS, build, close, lora_for

from i2l.i2l_core.schedule import Curve, Schedule

STEPS = 4


@pytest.fixture(scope="module", params=["lumina2", "flux2", "hidream_o1"])
def name(request: pytest.FixtureRequest, host) -> str:
    return request.param


def sigmas_of(model) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)


def denoise(model, case: Case, sigmas, latent, noise) -> torch.Tensor:
    import comfy.samplers

    guider = cfg_guider(model, case)
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, latent, euler, sigmas, disable_pbar=True, seed=1)


def percent_at(sampling, sigma: float) -> float:
    """The percent (0..1) of a sigma, by trying them all."""
    return next(k / 10000 for k in range(10001) if sampling.percent_to_sigma(k / 10000) <= sigma)


def stepwise(name: str, lora, case: Case, strength_at) -> torch.Tensor:
    """One Euler step at a time, each with a model of its own that has the step's strength in its weights."""
    from i2l.i2l_core.host.patch import apply_merged

    latent = torch.zeros(case.batch, *LATENTS[name])
    sigmas = sigmas_of(build(name))
    for i in range(STEPS):
        model = build(name)
        percent = percent_at(model.get_model_object("model_sampling"), float(sigmas[i]))
        noise = case.noise() if i == 0 else torch.zeros_like(latent)
        latent = denoise(
            apply_merged(model, lora, strength_at(percent)), case, sigmas[i : i + 2], latent, noise
        )
    return latent


def test_every_step_has_the_strength_of_the_curve(name: str):
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    model = build(name)
    lora, case = lora_for(model, seed=1, rank=3), Case(name, batch=2, lengths=(7, 11))
    curve = Curve(((0.0, 1.0), (0.4, 0.3), (0.8, -0.5), (1.0, 0.0)))
    zero = torch.zeros(case.batch, *LATENTS[name])
    live = attach(model, LiveLoRA(lora, 0.8, schedule=Schedule(curve=curve)))
    actual = denoise(live, case, sigmas_of(model), zero, case.noise())
    close(actual, stepwise(name, lora, case, lambda percent: 0.8 * curve(percent)), 2e-4)
    constant = attach(model, LiveLoRA(lora, 0.8))
    assert (actual - denoise(constant, case, sigmas_of(model), zero, case.noise())).abs().max() > 1e-3


def test_a_level_curve_is_a_strength_and_a_zero_one_is_nothing(name: str):
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    model = build(name)
    lora, case = lora_for(model, seed=1, rank=3), Case(name)
    zero = torch.zeros(case.batch, *LATENTS[name])

    def result(*loras) -> torch.Tensor:
        patched = attach(model, *loras) if loras else model
        return denoise(patched, case, sigmas_of(model), zero, case.noise())

    level = result(LiveLoRA(lora, 2.0, schedule=Schedule(curve=Curve(((0.0, 0.25),)))))
    close(level, result(LiveLoRA(lora, 0.5)), 1e-5)
    assert torch.equal(result(LiveLoRA(lora, 2.0, schedule=Schedule(curve=Curve(((0.5, 0.0),))))), result())


def test_a_curve_a_mask_and_a_plain_lora_act_together(name: str):
    """Each as it would alone: a level curve of 0.5 under a mask is a mask of 0.5."""
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    model = build(name)
    one, two = lora_for(model, seed=1, rank=3), lora_for(model, seed=2, rank=2)
    case = Case(name, batch=2)
    zero = torch.zeros(case.batch, *LATENTS[name])
    mask = torch.rand(1, 8, 8)

    def result(*loras) -> torch.Tensor:
        return denoise(attach(model, *loras), case, sigmas_of(model), zero, case.noise())

    curved = result(
        LiveLoRA(one, schedule=Schedule(curve=Curve(((0.0, 0.5),))), mask=mask), LiveLoRA(two, 0.7)
    )
    close(curved, result(LiveLoRA(one, mask=mask * 0.5), LiveLoRA(two, 0.7)), 1e-5)


def test_percents_are_the_inverse_of_the_hosts_sigmas(name: str):
    from i2l.i2l_core.host.percents import SigmaToPercent

    sampling: Any = build(name).get_model_object("model_sampling")
    percents = SigmaToPercent(sampling)
    for percent in (0.0, 0.001, 0.1234, 0.5, 0.9, 0.999, 1.0):
        assert percents.at(float(sampling.percent_to_sigma(percent))) == pytest.approx(percent, abs=2e-3)
    assert percents.at(1e9) == 0
    assert percents.at(-1.0) == 1
