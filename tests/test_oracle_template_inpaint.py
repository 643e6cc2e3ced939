"""A template's picture and mask: DiffSynth's steps against ComfyUI's noise mask, over a whole sampling."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from oracles import LIMIT
from PIL import Image
from tiny_models import build, conditioning

SIDE = 6  # of the latents; pictures have 16 times as many pixels
STEPS = 4


@pytest.fixture(scope="module")
def pipeline() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flux2 = pytest.importorskip("diffsynth.pipelines.flux2_image")
    pipe = flux2.Flux2ImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.scheduler.set_timesteps(STEPS, denoising_strength=1.0, dynamic_shift_len=SIDE * SIDE)
    return pipe


def masks() -> dict[str, Image.Image]:
    """As PIL: 0 or 1 in every latent; the right half of a picture, so that only the border is between; noise."""
    gen = torch.Generator().manual_seed(4)
    half = torch.zeros(16 * SIDE, 16 * SIDE)
    half[:, 8 * SIDE :] = 1
    tensors = {
        "hard": (torch.rand(SIDE, SIDE, generator=gen) > 0.5).float(),
        "half": half,
        "soft": torch.rand(16 * SIDE, 16 * SIDE, generator=gen),
    }
    return {name: Image.fromarray((mask * 255).to(torch.uint8).numpy()) for name, mask in tensors.items()}


def denoised(model: Any, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    ((text, _),) = conditioning("flux2", 0)
    conds = model.model.extra_conds(noise=x, device=x.device, cross_attn=text)
    inputs = {key: cond.process_cond(batch_size=1).cond for key, cond in conds.items()}
    with torch.inference_mode():
        return model.model.apply_model(x, sigma[None], **inputs, transformer_options={})


def theirs(pipe: Any, model: Any, mask: Image.Image | None, x0: torch.Tensor, noise: torch.Tensor):
    """Their Euler steps, with their reading of the mask, over the host's network."""
    unit = next(unit for unit in pipe.units if unit.__class__.__name__ == "Flux2Unit_Inpaint")
    read = unit.process(pipe, mask, 16 * SIDE, 16 * SIDE, None, None) if mask else {}
    flat = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731
    x = noise * pipe.scheduler.sigmas[0] + x0 * (1 - pipe.scheduler.sigmas[0])
    for i, sigma in enumerate(pipe.scheduler.sigmas):
        velocity = (x - denoised(model, x, sigma)) / sigma
        x = pipe.step(pipe.scheduler, flat(x), i, flat(velocity), input_latents=flat(x0), **read)
        x = x.transpose(1, 2).unflatten(2, (SIDE, SIDE))
    return x


def ours(pipe: Any, model: Any, mask: Image.Image | None, x0: torch.Tensor, noise: torch.Tensor):
    """Core's sampling with the noise mask that Apply Template gives."""
    import comfy.samplers

    from i2l.i2l_core.host.templates.apply import noise_mask

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning("flux2", 0), conditioning("flux2", 1))
    guider.set_cfg(1.0)
    sigmas = torch.cat([pipe.scheduler.sigmas, torch.zeros(1)])
    euler = comfy.samplers.sampler_object("euler")
    given = noise_mask(mask, x0) if mask else None
    with torch.inference_mode():
        return guider.sample(noise, x0, euler, sigmas, denoise_mask=given, disable_pbar=True, seed=1)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("none", LIMIT), ("hard", LIMIT), ("half", 0.05), ("soft", 0.15)],
)
def test_inside_of_a_mask(host, pipeline: Any, kind: str, limit: float):
    """Errors as a share of what the mask changes. Where the shrunken mask is between 0 and 1, ComfyUI also mixes what
    the network sees, and DiffSynth does not."""
    model, mask = build("flux2"), masks().get(kind)
    gen = torch.Generator().manual_seed(2)
    x0, noise = (torch.randn(1, 128, SIDE, SIDE, generator=gen) for _ in range(2))
    expected, found = (draw(pipeline, model, mask, x0, noise) for draw in (theirs, ours))
    free = theirs(pipeline, model, None, x0, noise)
    changed = (expected - free).norm() if mask else expected.norm()
    error = float((found - expected).norm() / changed)
    assert error <= limit


def test_the_mask_is_read_as_theirs(host, pipeline: Any):
    from i2l.i2l_core.host.templates.apply import noise_mask

    unit = next(unit for unit in pipeline.units if unit.__class__.__name__ == "Flux2Unit_Inpaint")
    for size, mask in (((7, 5), masks()["soft"]), ((6, 6), masks()["half"].convert("RGB"))):
        width, height = size
        expected = unit.process(pipeline, mask, 16 * height, 16 * width, None, None)["inpaint_mask"]
        found = noise_mask(mask, torch.zeros(1, 128, height, width))
        assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-6)
