"""Styles in parts of a picture, against separately patched models whose predictions are mixed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from samplings import merged
from tiny_models import CONFIGS, LATENTS, build, close, conditioning, lora_for

from i2l.i2l_core.errors import I2LError


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request: pytest.FixtureRequest, host) -> str:
    return request.param


@pytest.fixture
def loras(name: str):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    return [PredictedLoRA(lora_for(build(name), seed, rank=2 + seed)) for seed in range(2)]


def denoised(name: str, patcher: Any, positive: Any, cfg: float = 1.0, batch: int = 1) -> torch.Tensor:
    """One step to sigma 0."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, conditioning(name, 5))
    guider.set_cfg(cfg)
    noise = torch.randn(batch, *LATENTS[name], generator=torch.Generator().manual_seed(9))
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 1)
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=1)


def half(side: str, size: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[..., slice(size // 2) if side == "left" else slice(size // 2, None)] = 1
    return mask


def on_latent(name: str, mask: torch.Tensor) -> torch.Tensor:
    """As the host brings a mask to the latent."""
    return F.interpolate(mask[None], LATENTS[name][-2:], mode="bilinear")


@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 1), (4.0, 2)])
def test_each_region_is_what_its_own_model_would_draw(name: str, loras, cfg: float, batch: int):
    from i2l.i2l_core.host.regions import add_region

    prompt, other = conditioning(name, 0), conditioning(name, 1)
    one, positive = add_region(build(name), prompt, loras[0], half("left"))
    both, regions = add_region(one, positive, loras[1], half("right"), prompt=other)
    assert len(regions) == 2  # nothing is left of the rest
    negative = denoised(name, build(name), conditioning(name, 5), 1.0, batch)

    def guided(model: Any, text: Any) -> torch.Tensor:
        return negative + cfg * (denoised(name, model, text, 1.0, batch) - negative)

    left = on_latent(name, half("left"))
    truth = left * guided(merged(name, loras[0].lora), prompt)
    truth = truth + (1 - left) * guided(merged(name, loras[1].lora), other)
    close(denoised(name, both, regions, cfg, batch), truth, 1e-5)


def test_the_rest_is_as_it_was(name: str, loras):
    from i2l.i2l_core.host.regions import add_region

    prompt = conditioning(name, 0)
    model, regions = add_region(build(name), prompt, loras[0], 0.25 * half("left"))
    assert len(regions) == 2
    left = on_latent(name, 0.25 * half("left"))
    style, plain = denoised(name, merged(name, loras[0].lora), prompt), denoised(name, build(name), prompt)
    close(denoised(name, model, regions), left * style + (1 - left) * plain, 1e-5)


def test_a_region_of_everything_is_the_style_on_the_positive_side(name: str, loras):
    from i2l.i2l_core.host.guidance import asymmetric
    from i2l.i2l_core.host.regions import add_region

    prompt = conditioning(name, 0)
    model, regions = add_region(build(name), prompt, loras[0], torch.ones(1, 8, 8), strength=0.7)
    truth = asymmetric(build(name), loras[0], strength=0.7)
    close(denoised(name, model, regions, 4.0), denoised(name, truth, prompt, 4.0), 1e-5)


@pytest.fixture
def lumina(host):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    model = build("lumina2")
    return model, conditioning("lumina2", 0), PredictedLoRA(lora_for(model, 1))


def test_a_later_region_lies_on_top_and_asks_for_the_first_prompt(lumina):
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    model, regions = add_region(model, prompt, lora, torch.ones(1, 8, 8), prompt=conditioning("lumina2", 1))
    model, regions = add_region(model, regions, lora, half("left"))
    masks = [values["mask"] for _, values in regions]
    assert torch.equal(masks[0], half("right"))
    assert torch.equal(masks[1], half("left"))
    assert torch.equal(regions[1][0], prompt[0][0])


def test_masks_of_the_users_own_stay(lumina):
    """A prompt for one part of the picture (Conditioning Set Mask) under a region, of another resolution."""
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    own = [
        [prompt[0][0], {**prompt[0][1], "mask": half("left", 64), "mask_strength": 0.5}],
        *conditioning("lumina2", 1),
    ]
    _, regions = add_region(model, own, lora, half("right"))
    found = [(values["mask"].mean(), values.get("mask_strength")) for _, values in regions]
    assert found == [(0.5, 0.5), (0.5, None), (0.5, None)]
    assert "mask" not in own[1][1]  # what came in stays


def test_what_came_in_stays(lumina):
    from i2l.i2l_core.host.live.engine import attached
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    values = dict(prompt[0][1])
    styled, _ = add_region(model, prompt, lora, half("left"))
    assert prompt[0][1] == values
    assert (len(attached(model)), len(attached(styled))) == (0, 1)


def masks_of(count: int) -> torch.Tensor:
    return torch.stack([half("left" if i % 2 else "right")[0] for i in range(count)])


def test_a_mask_for_each_picture_of_the_batch(lumina):
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    both = denoised("lumina2", *add_region(model, prompt, lora, masks_of(2)), batch=2)
    for i in range(2):
        alone = denoised("lumina2", *add_region(model, prompt, lora, masks_of(2)[i : i + 1]), batch=2)
        close(both[i], alone[i], 1e-5)


@pytest.mark.parametrize(("masks", "batch"), [(2, 1), (2, 3), (3, 2), (2, 4)])
def test_masks_for_another_batch_size_are_refused_before_the_first_step(lumina, masks: int, batch: int):
    """The host takes the first of too many, repeats what divides the batch, and fails on the rest."""
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    one = add_region(model, prompt, lora, masks_of(masks))
    both = add_region(*one, lora, half("left"))
    for styled in (one, both):
        with pytest.raises(I2LError, match=f"for {masks} pictures, the batch has {batch}; give Style Region"):
            denoised("lumina2", *styled, batch=batch)
    with pytest.raises(I2LError, match=f"has 4 pictures, a mask before it {masks}; give every region one"):
        add_region(*one, lora, masks_of(4))


BAD = [
    (dict(mask=255 * torch.ones(1, 8, 8)), "the mask has values from 255 to 255, expected 0 to 1"),
    (dict(mask=torch.full((1, 8, 8), 255)), "the mask has values from 255 to 255, expected 0 to 1"),
    (dict(mask=torch.zeros(1, 8, 8)), "black everywhere; paint white"),
    (dict(mask=torch.full((1, 8, 8), float("nan"))), "NaN"),
    (dict(mask=torch.ones(8, 8)), "must be a MASK"),
    (dict(positive=[]), "connect a CLIP Text Encode"),
    (dict(strength=float("inf")), "strength"),
]


def test_a_mask_of_bools_is_the_same_region(lumina):
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    (_, whole), (_, floats) = (
        add_region(model, prompt, lora, mask) for mask in (half("left").bool(), half("left"))
    )
    for (_, ours), (_, theirs) in zip(whole, floats, strict=True):
        assert torch.equal(ours["mask"], theirs["mask"])


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_errors_say_what_to_do(lumina, change: dict[str, Any], message: str):
    from i2l.i2l_core.host.regions import add_region

    model, prompt, lora = lumina
    arguments = {"positive": prompt, "mask": half("left"), **change}
    with pytest.raises(I2LError, match=message):
        add_region(model, value=lora, **arguments)


def test_a_lora_for_another_model_is_refused(lumina):
    from i2l.i2l_core.host.lora_model import PredictedLoRA
    from i2l.i2l_core.host.regions import add_region

    model, prompt, _ = lumina
    with pytest.raises(I2LError, match="does not fit"):
        add_region(model, prompt, PredictedLoRA(lora_for(build("flux2"), 1)), half("left"))
