"""The demo world's FLUX.2 in the host: the same numbers as in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import random_demo_weights

from i2l.i2l_core.demo import files
from i2l.i2l_core.demo.flux2 import Extras, Flux2Backbone, Flux2Config
from i2l.i2l_core.demo.prompts import tokenise
from i2l.i2l_core.demo.sampler import Sampling
from i2l.i2l_core.errors import I2LError

SIGMA = torch.tensor([0.0, 0.3, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_demo_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(host, folder: Path):
    from i2l.i2l_core.host.demo.flux2 import load_flux2

    return load_flux2(folder)


def inputs(folder: Path):
    text = files.load_backbone(folder)[1]
    return torch.randn(3, 16, 8, 12), text(torch.tensor([tokenise("one star on the left")] * 3))


@torch.inference_mode()
def test_velocity_equals_that_of_training(model, folder: Path):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    network = files.load_flux2(folder)
    x, context = inputs(folder)
    ours = network(x, SIGMA, context)
    theirs = model.model.diffusion_model(x, SIGMA, context)
    assert (ours - theirs).norm() <= 1e-5 * ours.norm()
    found = model.model.apply_model(x, SIGMA, c_crossattn=context)
    expected = x - SIGMA[:, None, None, None] * ours
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@torch.inference_mode()
def test_prompts_are_not_padded(model, folder: Path):
    """What the sampler hands over has the demo's 16 words, not FLUX.2's 512."""
    noise, context = torch.zeros(1, 16, 8, 8), torch.randn(1, 16, 128)
    conds = model.model.extra_conds(cross_attn=context, noise=noise, device="cpu")
    assert torch.equal(conds["c_crossattn"].cond, context)


@torch.inference_mode()
def test_keys_and_values_of_training_are_those_of_the_host(model, folder: Path):
    """What every block of a control network gives away, and what seeing it changes."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    network = files.load_flux2(folder)
    x, context = inputs(folder)
    found = {}

    def keep(attention, q, k, v, heads, **options):
        found[len(found)] = (k.clone(), v.clone())
        return attention(q, k, v, heads, **options)

    options = {"rope_options": {"shift_t": 10.0}, "optimized_attention_override": keep}
    model.model.diffusion_model(x, torch.zeros(3), context, transformer_options=options)
    seen = network.keys_values(x, context)
    assert list(seen) == ["double_0", *(f"single_{i}" for i in range(6))]
    for (k, v), (host_k, host_v) in zip(seen.values(), found.values(), strict=True):
        torch.testing.assert_close(k.transpose(1, 2), host_k, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(v.transpose(1, 2), host_v, rtol=1e-4, atol=1e-5)
    plain, steered = network(x, SIGMA, context), network(x, SIGMA, context, Extras(cache=seen))
    assert (plain - steered).norm() > 1e-3 * plain.norm()
    twice = {name: (torch.cat([k, k], 1), torch.cat([v, v], 1)) for name, (k, v) in seen.items()}
    assert (network(x, SIGMA, context, Extras(cache=twice)) - steered).norm() > 1e-4 * plain.norm()


def test_model_is_recognised(model):
    from i2l.i2l_core.base_models import recognise
    from i2l.i2l_core.host.patch import weights_of

    assert recognise(weights_of(model)).id == "i2l-tiny-flux2"


def test_noise_levels_are_those_of_the_other_demo_model(model):
    import comfy.samplers

    sampler = comfy.samplers.KSampler(model, 12, "cpu", "euler", "simple")
    # the host's table has ten times as many rows for FLUX, so "simple" rounds to other ones
    torch.testing.assert_close(Sampling(12).sigmas(), sampler.sigmas, atol=2e-3, rtol=0)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_or_damaged_weights_are_named(host, tmp_path: Path, folder: Path, damage: str):
    from i2l.i2l_core.host.demo.flux2 import load_flux2

    content = (folder / files.FLUX2).read_bytes()
    if damage == "truncated":
        (tmp_path / files.FLUX2).write_bytes(content[: len(content) // 2])
    with pytest.raises(I2LError, match=files.FLUX2):
        load_flux2(tmp_path)


def test_heads_that_cannot_rotate_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        Flux2Config(hidden_size=100, num_heads=5)


def test_gradients_reach_every_weight():
    network = Flux2Backbone(Flux2Config(hidden_size=32, num_heads=1, depth_single_blocks=1))
    network(torch.randn(2, 16, 4, 4), SIGMA[:2], torch.randn(2, 3, 128)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
