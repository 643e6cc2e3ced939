"""Caches of keys and values in the host: whole samplings against networks that see them by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kv_templates import dit_file
from samplings import Case, asymmetric, cfg_guider, merged, run
from tiny_models import build, close, lora_for

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.kv_caches.cache import KVCache, merge
from i2l.i2l_core.kv_caches.dit import DitTemplate
from i2l.i2l_core.kv_caches.kinds import recognise_template

BLOCKS = ("double_0", "single_0", "single_1")  # of the tiny FLUX.2: two heads of 128
LIMIT = 3e-5


def cache(seed: int, tokens: int = 5, blocks=BLOCKS, heads: int = 2, width: int = 128) -> KVCache:
    gen = torch.Generator().manual_seed(seed)
    shape = (1, tokens, heads, width)
    return KVCache(
        {name: (torch.randn(shape, generator=gen), torch.randn(shape, generator=gen)) for name in blocks},
        f"template {seed}",
    )


class Seeing:
    """The truth: an attention override, after the host's own rotation, on a MODEL of its own."""

    def __init__(self, seen: KVCache) -> None:
        self.seen = seen

    def __call__(self, attention, q, k, v, heads, **options):
        place = options["transformer_options"]
        pair = self.seen.blocks.get(f"{place['block_type']}_{place['block_index']}")
        if pair is not None:
            more = (part.transpose(1, 2).expand(len(k), -1, -1, -1) for part in pair)
            k, v = (torch.cat(parts, 2) for parts in zip((k, v), more, strict=True))
        return attention(q, k, v, heads, **options)


def seeing(model, seen: KVCache):
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = Seeing(seen)
    return clone


def guider(model, case: Case, positive=(), negative=()):
    """A CFG guider with caches on each side."""
    import comfy.samplers

    from i2l.i2l_core.host.kv_caches.apply import apply_cache

    sides = list(case.conds())
    for i, caches in enumerate((positive, negative)):
        for one in caches:
            sides[i] = apply_cache(sides[i], one)
    found = comfy.samplers.CFGGuider(model)
    found.set_conds(*sides)
    found.set_cfg(case.cfg)
    return found


def by_hand(positive_model, positive: KVCache | None, negative_model, negative: KVCache | None, case: Case):
    """Two models, each with its own weights and its own override: the two sides of CFG, one after the other."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    def options_with(options, seen: KVCache | None):
        if seen is None:
            return options
        transformer = {**options["transformer_options"], "optimized_attention_override": Seeing(seen)}
        return {**options, "transformer_options": transformer}

    class Sides(Guider_DualModel):
        def predict_noise(self, x, timestep, model_options, seed=None):
            def side(network, conds, seen):
                options = options_with(model_options, seen)
                return comfy.samplers.calc_cond_batch(network, [conds], x, timestep, options)[0]

            cond = side(self.inner_model, self.conds["positive"], positive)
            if self.cfg == 1:
                return cond
            uncond = side(self.uncond_inner, self._uncond_conds, negative)
            return uncond + (cond - uncond) * self.cfg

    sides = Sides(positive_model, negative_model)
    sides.set_conds(*case.conds())
    sides.set_cfg(case.cfg)
    return run(sides, case)


@pytest.fixture(scope="module")
def model(host):
    return build("flux2")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cfg", [1.0, 4.0, 7.5])
def test_each_side_sees_its_own_cache(model, cfg: float, batch: int):
    case = Case("flux2", cfg, batch)
    one, other = cache(1, 24), cache(2, 10)
    found = run(guider(model, case, [one], [other]), case)
    truth = by_hand(build("flux2"), one, build("flux2"), other, case)
    plain = run(cfg_guider(model, case), case)
    effect = (truth - plain).norm()
    assert (found - truth).norm() <= LIMIT * effect
    swapped = by_hand(build("flux2"), other, build("flux2"), one, case)
    assert (found - swapped).norm() > 100 * LIMIT * effect


def test_wrong_ways_would_be_seen(model):
    """Rotating the cache, losing a block, and counting it once where it is given twice are far from the truth."""
    case, seen = Case("flux2", 1.0), cache(1, 24)
    truth = run(guider(model, case, [seen]), case)
    effect = (truth - run(cfg_guider(model, case), case)).norm()
    turned = KVCache({name: (-keys, values) for name, (keys, values) in seen.blocks.items()})
    lost = KVCache({name: pair for name, pair in seen.blocks.items() if name != "single_0"})
    for wrong in ([turned], [lost], [seen, seen]):
        assert (run(guider(model, case, wrong), case) - truth).norm() > 100 * LIMIT * effect


@pytest.mark.parametrize("tokens", [1, 17, 512])
def test_parts_and_several_add_up(model, tokens: int):
    case = Case("flux2", 4.0)
    whole, part = cache(1, tokens), cache(2, 3, ("single_1",))
    found = run(guider(model, case, [whole, part], [part]), case)
    both = merge([part, whole])
    truth = by_hand(build("flux2"), both, build("flux2"), part, case)
    close(found, truth, 1e-5)
    twice = run(guider(model, case, [whole, whole]), case)
    close(twice, by_hand(build("flux2"), merge([whole, whole]), build("flux2"), None, case), 1e-5)


def test_it_goes_with_asymmetric_guidance(model):
    case = Case("flux2", 4.0)
    style, neutral = lora_for(model, 1), lora_for(model, 2)
    one, other = cache(1), cache(2)
    found = run(guider(asymmetric(model, style, neutral), case, [one], [other]), case)
    truth = by_hand(merged("flux2", style), one, merged("flux2", neutral), other, case)
    close(found, truth, 1e-4)


def test_references_masks_and_timesteps_compose(model):
    """Reference pictures, a time range on a part of the prompt: the cache is seen where its prompt is."""
    import comfy.samplers
    import node_helpers

    from i2l.i2l_core.host.kv_caches.apply import apply_cache

    reference = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(2))
    case = Case("flux2", 1.0, extra={"reference_latents": [reference]})
    seen = cache(1)
    found = run(guider(model, case, [seen]), case)
    close(found, run(cfg_guider(seeing(build("flux2"), seen), case), case), 1e-5)

    positive, negative = Case("flux2", 1.0).conds()
    early = node_helpers.conditioning_set_values(
        apply_cache(positive, seen), {"start_percent": 0.0, "end_percent": 0.0}
    )
    late = node_helpers.conditioning_set_values(positive, {"start_percent": 0.0, "end_percent": 1.0})
    both = comfy.samplers.CFGGuider(model)
    both.set_conds(early + late, negative)
    both.set_cfg(1.0)
    plain = run(cfg_guider(model, Case("flux2", 1.0)), Case("flux2", 1.0))
    assert (run(both, Case("flux2", 1.0)) - plain).norm() > 1e-4 * plain.norm()


def test_other_patches_and_hooks_stay(model):
    """An attn1_patch and an override of other packs see what they would; the cache comes behind the patch."""
    import comfy.hooks

    case, seen, calls = Case("flux2", 1.0), cache(1), []

    def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
        calls.append(k.shape[2])
        return {"q": q, "k": k * 1.1, "v": v}

    def override(attention, q, k, v, heads, **options):
        calls.append(k.shape[2])
        return attention(q, k, v, heads, **options)

    def other(base):
        clone = base.clone()
        clone.set_model_attn1_patch(patch)
        return clone

    patched = other(model)
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    found = run(guider(patched, case, [seen]), case)
    assert set(calls[::2]) == {16 + 512}
    assert set(calls[1::2]) == {16 + 512 + 5}
    close(found, run(cfg_guider(seeing(other(build("flux2")), seen), case), case), 1e-5)

    from i2l.i2l_core.host.kv_caches.apply import apply_cache

    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.AdditionalModelsHook([]))
    positive, _ = case.conds()
    hooked = apply_cache(comfy.hooks.set_hooks_for_conditioning(positive, group, cache={}), seen)
    kinds = {type(hook).__name__ for hook in hooked[0][1]["hooks"].hooks}
    assert kinds == {"AdditionalModelsHook", "_CacheHook"}


def kv_cache(model):
    """Core's node: keys and values of reference pictures are computed in the first step and kept."""
    from comfy_extras.nodes_flux import FluxKVCache

    return FluxKVCache.execute(model).result[0]  # type: ignore[index]


def edit(cfg: float, batch: int = 1) -> Case:
    reference = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(2))
    return Case("flux2", cfg, batch, extra={"reference_latents": [reference]})


def with_core(positive: KVCache | None, negative: KVCache | None, case: Case):
    """The truth: each side a model of its own, with core's node of its own."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    models = kv_cache(build("flux2")), kv_cache(build("flux2"))

    class Sides(Guider_DualModel):
        def predict_noise(self, x, timestep, model_options, seed=None):
            def side(network, conds, seen, model):
                options = dict(model.model_options["transformer_options"])
                if seen is not None:
                    options["optimized_attention_override"] = Seeing(seen)
                return comfy.samplers.calc_cond_batch(
                    network, [conds], x, timestep, {**model_options, "transformer_options": options}
                )[0]

            cond = side(self.inner_model, self.conds["positive"], positive, models[0])
            uncond = side(self.uncond_inner, self._uncond_conds, negative, models[1])
            return uncond + (cond - uncond) * self.cfg

    sides = Sides(*models)
    sides.set_conds(*case.conds())
    sides.set_cfg(case.cfg)
    return run(sides, case)


def test_beside_the_kv_cache_of_core_at_cfg_1(model):
    case, seen = edit(1.0, 2), cache(1, 24)
    truth = run(cfg_guider(kv_cache(seeing(build("flux2"), seen)), case), case)
    effect = (truth - run(cfg_guider(kv_cache(model), case), case)).norm()
    kept = kv_cache(model)
    for _ in range(2):
        assert (run(guider(kept, case, [seen]), case) - truth).norm() <= LIMIT * effect
    # core's node changes the picture: the reference is computed at noise level 0
    assert (run(guider(model, case, [seen]), case) - truth).norm() > 0.01 * effect


@pytest.mark.parametrize("sides", ["each", "positive", "negative", "both", "one more"])
def test_beside_the_kv_cache_of_core_each_side_has_its_own_references(model, sides: str):
    """A reference picture that has seen the cache of one side is not what the other side may look at."""
    import comfy.samplers

    from i2l.i2l_core.host.kv_caches.apply import apply_cache, apply_caches

    case, one, other = edit(4.0), cache(1, 24), cache(2, 10)
    first, second = {
        "each": (one, other),
        "positive": (one, None),
        "negative": (None, one),
        "both": (one, one),
        "one more": (other, other),
    }[sides]
    positive, negative = apply_caches(*case.conds(), first, second)
    if sides == "one more":
        positive, first = apply_cache(positive, one), merge([other, one])
    found = comfy.samplers.CFGGuider(kv_cache(model))
    found.set_conds(positive, negative)
    found.set_cfg(4.0)
    truth, plain = with_core(first, second, case), with_core(None, None, case)
    assert (run(found, case) - truth).norm() <= 1e-4 * (truth - plain).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_other_types_are_converted_once(model, dtype: torch.dtype):
    case = Case("flux2", 4.0)
    exact = cache(1)
    blocks = {name: tuple(part.to(dtype) for part in pair) for name, pair in exact.blocks.items()}
    stored = KVCache(blocks)  # type: ignore[arg-type]
    same = KVCache({name: (k.float(), v.float()) for name, (k, v) in stored.blocks.items()})
    assert torch.equal(run(guider(model, case, [stored]), case), run(guider(model, case, [same]), case))


def test_nothing_is_left_behind(model):
    """Neither after a sampling nor after one that was cancelled: the plain model draws as before, to the bit."""
    import comfy.model_management

    case, seen = Case("flux2", 4.0), cache(1)
    plain = run(cfg_guider(model, case), case)
    weights = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    once = run(guider(model, case, [seen]), case)
    assert torch.equal(run(cfg_guider(model, case), case), plain)

    stopped = model.clone()

    def stop(args):
        raise comfy.model_management.InterruptProcessingException

    stopped.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(guider(stopped, case, [seen]), case)
    assert torch.equal(run(guider(model, case, [seen]), case), once)
    assert torch.equal(run(cfg_guider(model, case), case), plain)
    assert all(torch.equal(weight, weights[key]) for key, weight in model.model.state_dict().items())
    assert "hooks" not in case.conds()[0][0][1]


def test_the_host_loads_and_counts_the_cache(model, monkeypatch: pytest.MonkeyPatch):
    import comfy.model_management

    seen, case = cache(1, 100), Case("flux2", 1.0)
    loaded: list[Any] = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, *a, **k: loaded.extend(models) or load(models, *a, **k),
    )
    run(guider(model, case, [seen]), case)
    assert seen.nbytes in [held.model_size() for held in loaded]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("lumina2", cache(1), r"template 1 is for FLUX\.2 klein 4B, but the MODEL is the tiny demo model"),
        ("qwen_image", cache(1), r"template 1 is for FLUX\.2 klein 4B, but the MODEL is QwenImage"),
        ("flux2", cache(1, width=64), r"has 2 heads of 64 .* with 2 heads of 128 in 1 and 2; use the model"),
        ("flux2", cache(1, blocks=("double_1",)), r"in 2 double and 0 single blocks, but the MODEL"),
    ],
)
def test_other_models_are_refused_before_the_first_step(host, name: str, wrong: KVCache, message: str):
    case, base = Case(name, 4.0), build(name)
    with pytest.raises(I2LError, match=message):
        run(guider(base, case, [wrong]), case)


SIZES = DitTemplate(hidden=64, head_dim=32, mlp=192, double=1, single=2, patch=64, text=128)


@torch.inference_mode()
def test_a_network_gives_what_the_demos_own_twin_gives(host, tmp_path: Path):
    """The published names, read for the host's class, against the network that training uses; 16 channels, H != W."""
    from i2l.i2l_core.demo.flux2 import Flux2Backbone, Flux2Config
    from i2l.i2l_core.files.safetensors import open_safetensors
    from i2l.i2l_core.host.kv_caches.dit import load_network, run_network
    from i2l.i2l_core.kv_caches.dit import host_name

    path = dit_file(tmp_path / "model.safetensors", SIZES)
    assert recognise_template(path) == SIZES
    twin = Flux2Backbone(Flux2Config(hidden_size=64, num_heads=2, depth_single_blocks=2))
    with open_safetensors(path) as file:
        twin.load_state_dict(
            {host: file.get_tensor(name) for name in file.keys() if (host := host_name(name))}, strict=False
        )
    picture, text = torch.randn(1, 16, 8, 12), torch.randn(1, 16, 128)
    held = load_network(path, SIZES, 16, torch.float32)
    done = []
    found = run_network(
        held, SIZES, [picture], text, torch.float32, "ours", progress=lambda *a: done.append(a)
    )
    truth = twin.keys_values(picture, text)
    assert list(found.blocks) == list(truth)
    assert done == [(1, 3), (2, 3), (3, 3)]
    for name, pair in truth.items():
        for part, expected in zip(found.blocks[name], pair, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


def test_a_network_stays_in_8_bit_floats_and_can_be_cancelled(host, tmp_path: Path):
    import comfy.model_management

    from i2l.i2l_core.host.kv_caches.dit import load_network, run_network

    path = dit_file(tmp_path / "model.safetensors", SIZES, dtype=torch.float8_e4m3fn)
    held = load_network(path, SIZES, 16, torch.float32)
    kinds = {p.dtype for p in held.model.parameters() if p.ndim == 2}
    assert kinds == {torch.float8_e4m3fn}
    picture, text = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 128)
    assert run_network(held, SIZES, [picture, picture], text, torch.float32, "ours").tokens == 16 + 2 * 16

    def cancel(done: int, of: int) -> None:
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_network(held, SIZES, [picture], text, torch.float32, "ours", progress=cancel)
    comfy.model_management.interrupt_current_processing(False)
    with pytest.raises(I2LError, match=r"expected a prompt of width 128, got \(1, 16, 64\)"):
        run_network(held, SIZES, [picture], text[..., :64], torch.float32, "ours")
    with pytest.raises(I2LError, match="patches of 64 numbers, the VAE gives 128 channels"):
        load_network(path, SIZES, 128, torch.float32)
    assert replace(SIZES).host_config(16)["patch_size"] == 2
