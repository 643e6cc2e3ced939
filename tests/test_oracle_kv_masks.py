"""Caches beside a picture that a mask keeps, over whole samplings: DiffSynth's steps against ComfyUI's noise mask."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from oracles import FLUX2_NORMS, LIMIT, flux2_ids, randomise, take_weights
from tiny_models import build
from torch import Tensor

from i2l.i2l_core.kv_caches.cache import KVCache

pytestmark = pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated")

HEIGHT, WIDTH, STEPS = 4, 6, 3
BLOCKS = ("double_0", "double_1", "single_0", "single_1")
SIGMAS = torch.linspace(1, 0, STEPS + 1)


@pytest.fixture(scope="module")
def flux2(host) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffsynth.pipelines.flux2_image")


@pytest.fixture(scope="module")
def network(flux2) -> Any:
    from diffsynth.models.flux2_dit import Flux2DiT

    theirs = Flux2DiT(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        joint_attention_dim=48,
        guidance_embeds=False,
    )
    randomise(theirs)
    return theirs.eval()


@pytest.fixture(scope="module")
def patcher(network) -> Any:
    found = build("flux2", depth=2)
    take_weights(found, network, FLUX2_NORMS)
    return found


@pytest.fixture(scope="module")
def pipe(flux2, network) -> Any:
    """Its bare pipeline, with the tiny network in it and our sigmas."""
    found = flux2.Flux2ImagePipeline(device="cpu", torch_dtype=torch.float32)
    found.dit = network
    found.scheduler.timesteps, found.scheduler.sigmas = 1000 * SIGMAS[:-1], SIGMAS[:-1]
    return found


def cache(seed: int, tokens: int, names: tuple[str, ...] = BLOCKS) -> KVCache:
    """With values so large that rounding is small beside what they change."""
    gen = torch.Generator().manual_seed(seed)
    shape = (1, tokens, 2, 128)
    return KVCache(
        {n: (torch.randn(shape, generator=gen) * 1.5, torch.randn(shape, generator=gen) * 6) for n in names}
    )


CACHES = cache(0, 24), cache(1, 10, BLOCKS[1:])


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> Tensor:
    return random(seed, 1, 512, 48)


def tokens(picture: Tensor) -> Tensor:
    return picture.flatten(2).transpose(1, 2)


NOISE, KEPT = random(9, 1, 128, HEIGHT, WIDTH), random(10, 1, 128, HEIGHT, WIDTH)


def theirs(
    pipe: Any,
    cfg: float,
    caches: tuple[KVCache | None, KVCache | None],
    mask: Tensor | None = None,
    blend: bool = False,
) -> Tensor:
    """`blend`: what the host does where a mask is soft, in place of theirs."""
    from diffsynth.pipelines.flux2_image import model_fn_flux2

    image_ids, text_ids = flux2_ids(HEIGHT, WIDTH, words=512)
    sides = [
        {"prompt_embeds": text(i), "kv_cache": None if one is None else dict(one.blocks)}
        for i, one in enumerate(caches)
    ]
    shared: dict[str, Any] = {
        "text_ids": text_ids[None],
        "image_ids": image_ids[None],
        "embedded_guidance": 4.0,
    }
    kept = {} if mask is None else {"input_latents": tokens(KEPT), "inpaint_mask": tokens(mask)}
    x = tokens(NOISE)
    with torch.no_grad():
        for i, step in enumerate(pipe.scheduler.timesteps):
            sigma, seen = pipe.scheduler.sigmas[i], x
            if blend and mask is not None:
                kept_now = sigma * tokens(NOISE) + (1 - sigma) * tokens(KEPT)
                seen = pipe.blend_with_mask(kept_now, x, tokens(mask))
            velocity = pipe.cfg_guided_model_fn(
                model_fn_flux2, cfg, {**shared, "latents": seen}, *sides, dit=pipe.dit, timestep=step[None]
            )
            velocity = velocity + (x - seen) / sigma  # to the picture that the network saw it become
            x = pipe.step(pipe.scheduler, x, i, velocity, **kept)
    return x.transpose(1, 2).unflatten(2, (HEIGHT, WIDTH))


def host_draws(
    patcher: Any, cfg: float, caches: tuple[KVCache | None, KVCache | None], mask: Tensor | None = None
) -> Tensor:
    import comfy.samplers

    from i2l.i2l_core.host.kv_caches.apply import apply_caches

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(*apply_caches([[text(0), {}]], [[text(1), {}]], *caches))
    guider.set_cfg(cfg)
    with torch.inference_mode():
        return guider.sample(
            NOISE,
            KEPT if mask is not None else torch.zeros_like(NOISE),
            comfy.samplers.sampler_object("euler"),
            SIGMAS,
            denoise_mask=mask,
            disable_pbar=True,
            seed=1,
        )


def share(found: Tensor, expected: Tensor, without: Tensor) -> float:
    """An error, as a share of what the caches change."""
    return float((found - expected).double().norm() / (expected - without).double().norm())


@pytest.fixture(scope="module")
def mask() -> Tensor:
    """1 where a picture is drawn anew."""
    found = torch.zeros(1, 1, HEIGHT, WIDTH)
    found[..., 1:, : WIDTH // 2] = 1
    return found


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_picture_is_kept_outside_of_a_mask(pipe, patcher, mask: Tensor, cfg: float):
    expected, without = (theirs(pipe, cfg, one, mask=mask) for one in (CACHES, (None, None)))
    found = host_draws(patcher, cfg, CACHES, mask)
    assert share(found, expected, without) <= LIMIT
    outside = (1 - mask).expand_as(found).bool()
    for one in (found, expected):
        torch.testing.assert_close(one[outside], KEPT[outside], rtol=0, atol=1e-5)
    for other in (theirs(pipe, cfg, CACHES), theirs(pipe, cfg, CACHES, mask=1 - mask)):
        assert share(other, expected, without) > 1000 * LIMIT


def test_where_a_mask_is_soft_the_host_shows_the_network_the_picture(pipe, patcher, mask: Tensor):
    """There the two differ: their network sees the latent as it is, the host's a blend with the noised picture."""
    soft = 0.75 * mask
    expected, without = (theirs(pipe, 1.0, one, mask=soft) for one in (CACHES, (None, None)))
    found = host_draws(patcher, 1.0, CACHES, soft)
    assert share(found, expected, without) > 1000 * LIMIT
    blended, plain = (theirs(pipe, 1.0, one, mask=soft, blend=True) for one in (CACHES, (None, None)))
    assert share(found, blended, plain) <= LIMIT
