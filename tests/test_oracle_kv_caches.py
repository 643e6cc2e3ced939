"""Keys and values in the host against DiffSynth's own network, and whole samplings against its own steps."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from oracles import FLUX2_NORMS, LIMIT, flux2_ids, linears, ours, random_layers, randomise, take_weights
from samplings import asymmetric
from tiny_models import build
from torch import Tensor

from i2l.i2l_core.kv_caches.cache import KVCache, merge
from i2l.i2l_core.lora import LowRank

pytestmark = pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated")

HEIGHT, WIDTH = 4, 6
BLOCKS = ("double_0", "double_1", "single_0", "single_1")
KEYS, VALUES = 1.5, 60.0


@pytest.fixture(scope="module")
def pair(host) -> tuple[Any, Any]:
    """(the host's MODEL, DiffSynth's network) with the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffsynth.models.flux2_dit")
    torch.manual_seed(3)
    theirs = module.Flux2DiT(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        joint_attention_dim=48,
        guidance_embeds=False,
    )
    randomise(theirs)
    patcher = build("flux2", depth=2)
    take_weights(patcher, theirs, FLUX2_NORMS)
    return patcher, theirs.eval()


def cache(seed: int = 0, tokens: int = 24, names: tuple[str, ...] = BLOCKS) -> KVCache:
    """Keys as large as those of the network after its norm, values so large that one cache changes the output by 7 % of
    it or more: then what the two libraries differ by without one, 2e-7 of it, is below LIMIT of the change."""
    gen = torch.Generator().manual_seed(seed)
    shape = (1, tokens, 2, 128)
    return KVCache(
        {
            n: (torch.randn(shape, generator=gen) * KEYS, torch.randn(shape, generator=gen) * VALUES)
            for n in names
        }
    )


def text(seed: int) -> Tensor:
    return torch.randn(1, 512, 48, generator=torch.Generator().manual_seed(seed))


def start(batch: int = 1) -> Tensor:
    return torch.randn(batch, 128, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(9))


def velocity(theirs: Any, x: Tensor, sigma: float, words: Tensor, given: KVCache | None) -> Tensor:
    from diffsynth.pipelines.flux2_image import model_fn_flux2

    image_ids, text_ids = flux2_ids(HEIGHT, WIDTH, words=512)
    batch = x.shape[0]
    with torch.no_grad():
        out = model_fn_flux2(
            theirs,
            latents=x.flatten(2).transpose(1, 2),
            timestep=torch.tensor([1000 * sigma]).expand(batch),
            embedded_guidance=4.0,
            prompt_embeds=words.expand(batch, -1, -1),
            text_ids=text_ids.expand(batch, -1, -1),
            image_ids=image_ids.expand(batch, -1, -1),
            kv_cache=None if given is None else {n: _rows(pair, batch) for n, pair in given.blocks.items()},
        )
    return out.transpose(1, 2).unflatten(2, (HEIGHT, WIDTH))


def _rows(pair: tuple[Tensor, Tensor], batch: int) -> tuple[Tensor, ...]:
    return tuple(tensor.expand(batch, -1, -1, -1) for tensor in pair)


def sampled(patcher: Any, conds: tuple[Any, Any], cfg: float, steps: int, batch: int = 1) -> Tensor:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(*conds)
    guider.set_cfg(cfg)
    euler = comfy.samplers.sampler_object("euler")
    x = start(batch)
    sigmas = torch.linspace(1, 0, steps + 1)
    with torch.inference_mode():
        return guider.sample(x, torch.zeros_like(x), euler, sigmas, disable_pbar=True, seed=1)


def by_hand(
    theirs: Any, caches: tuple[KVCache | None, KVCache | None], cfg: float, steps: int, batch: int = 1
) -> Tensor:
    """Euler, with the cache of each side in a forward of its own; `theirs` may be a network for each side."""
    first, second = theirs if isinstance(theirs, tuple) else (theirs, theirs)
    x, sigmas = start(batch), torch.linspace(1, 0, steps + 1).tolist()
    for sigma, after in itertools.pairwise(sigmas):
        plus = velocity(first, x, sigma, text(0), caches[0])
        minus = plus if cfg == 1 else velocity(second, x, sigma, text(1), caches[1])
        x = x + (after - sigma) * (minus + cfg * (plus - minus))
    return x


def conds(first: KVCache | None, second: KVCache | None) -> tuple[Any, Any]:
    from i2l.i2l_core.host.kv_caches.apply import apply_caches

    return apply_caches([[text(0), {}]], [[text(1), {}]], first, second)


def error(found: Tensor, expected: Tensor, without: Tensor) -> float:
    """As a share of what the caches change."""
    return float((found - expected).double().norm() / (expected - without).double().norm())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        cache(),
        cache(tokens=1),
        cache(tokens=512),
        cache(names=BLOCKS[1:]),
        cache(names=BLOCKS[:1]),
        merge([cache(0), cache(1, 7, BLOCKS[:3])]),
    ],
    ids=["all", "one token", "many", "without a block", "one block", "two merged"],
)
def test_a_step_is_theirs(pair, given: KVCache, batch: int):
    patcher, theirs = pair
    expected, without = (by_hand(theirs, (one, None), 1.0, 1, batch) for one in (given, None))
    assert error(sampled(patcher, conds(given, None), 1.0, 1, batch), expected, without) <= LIMIT


def test_two_nodes_are_one_merged_and_twice_is_twice(pair):
    from i2l.i2l_core.host.kv_caches.apply import apply_caches

    patcher, theirs = pair
    one, two = cache(0), cache(1, 7)
    once = by_hand(theirs, (one, None), 1.0, 1)
    for second in (two, one):
        expected = by_hand(theirs, (merge([one, second]), None), 1.0, 1)
        both = apply_caches(*conds(one, None), second, None)
        assert error(sampled(patcher, both, 1.0, 1), expected, once) <= LIMIT


@pytest.mark.parametrize("cfg", [1.0, 4.0, 7.5])
def test_a_whole_sampling_with_a_cache_on_each_side(pair, cfg: float):
    patcher, theirs = pair
    caches = cache(0), cache(1, 10)
    expected, without = (by_hand(theirs, one, cfg, 4) for one in (caches, (None, None)))
    assert error(sampled(patcher, conds(*caches), cfg, 4), expected, without) <= LIMIT
    if cfg > 1:
        wrong = sampled(patcher, conds(caches[1], caches[0]), cfg, 4)
        assert error(wrong, expected, without) > 1000 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [1.0, 4.0, 7.5])
def test_a_whole_sampling_with_a_lora_and_a_cache_on_each_side(pair, cfg: float):
    """Live LoRAs in the host; in theirs, each side is a network of its own with a LoRA in its weights."""
    patcher, theirs = pair
    layers = [random_layers(linears(theirs), seed=seed) for seed in (7, 8)]
    networks = tuple(with_lora(theirs, lora) for lora in layers)
    style, neutral = (ours(patcher, lora) for lora in layers)
    host, caches = asymmetric(patcher, style, neutral), (louder(cache(0)), louder(cache(1, 10)))
    expected, without = (by_hand(networks, one, cfg, 4) for one in (caches, (None, None)))
    assert error(sampled(host, conds(*caches), cfg, 4), expected, without) <= LIMIT

    wrong = [sampled(patcher, conds(*caches), cfg, 4)]
    if cfg > 1:
        wrong.append(sampled(host, conds(*caches[::-1]), cfg, 4))
        wrong.append(sampled(asymmetric(patcher, neutral, style), conds(*caches), cfg, 4))
    for one in wrong:
        assert error(one, expected, without) > 1000 * LIMIT


def louder(given: KVCache) -> KVCache:
    """With values so large that rounding is small beside what they change: nothing is taken off the error."""
    return KVCache({name: (keys, 6 * values) for name, (keys, values) in given.blocks.items()})


def with_lora(network: Any, layers: Mapping[str, LowRank]) -> Any:
    found = copy.deepcopy(network)
    with torch.no_grad():
        for name, layer in layers.items():
            found.get_submodule(name).weight += layer.up @ layer.down
    return found


def test_the_same_cache_on_both_sides_is_one_forward(pair):
    patcher, theirs = pair
    both = cache()
    calls: list[int] = []
    network = patcher.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[0]))
    try:
        found = sampled(patcher, conds(both, both), 4.0, 2)
        assert calls == [2, 2]
        calls.clear()
        sampled(patcher, conds(both, cache()), 4.0, 2)
        assert calls == [1] * 4
    finally:
        handle.remove()
    expected, without = (by_hand(theirs, (one, one), 4.0, 2) for one in (both, None))
    assert error(found, expected, without) <= LIMIT


def test_faults_are_seen(pair, monkeypatch: pytest.MonkeyPatch):
    """A cache that is rotated as the keys are, and one that lost a block, fail by far."""
    from i2l.i2l_core.host.kv_caches import apply

    patcher, theirs = pair
    given = cache()
    expected, without = (by_hand(theirs, (one, None), 1.0, 1) for one in (given, None))
    lost = sampled(patcher, conds(cache(names=BLOCKS[:3]), None), 1.0, 1)
    assert error(lost, expected, without) > 1000 * LIMIT
    monkeypatch.setattr(
        apply._Patch, "_rotated", lambda self, pe, length, more: torch.cat([pe, pe[:, :, -more:]], 2)
    )
    rotated = sampled(patcher, conds(given, None), 1.0, 1)
    assert error(rotated, expected, without) > 1000 * LIMIT
