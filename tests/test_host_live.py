"""Live LoRAs against the truth: separately loaded, separately patched models run side by side."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from samplings import Case, asymmetric, cfg_guider, merged, run, side_by_side
from tiny_models import CONFIGS, build, close, conditioning, lora_for

NAMES = list(CONFIGS)


def references(name: str) -> dict[str, Any]:
    """What a conditioning of an edit carries: a reference picture of other proportions, seen by all eyes."""
    gen = torch.Generator().manual_seed(2)
    if name == "z_image_omni":
        seen = SimpleNamespace(
            image_sizes=[(3, 64, 32)], last_hidden_state=torch.randn(1, 8, 24, generator=gen)
        )
        return {
            "reference_latents": [torch.randn(1, 16, 8, 12, generator=gen)],
            "clip_vision_outputs": [seen],
        }
    return {"reference_latents": [torch.randn(1, 16, 1, 8, 12, generator=gen)]}


@pytest.fixture(scope="module")
def models(host):
    """Per network: the model, a style LoRA and a neutral LoRA of another rank."""
    found = {}
    for name in NAMES:
        model = build(name)
        found[name] = model, lora_for(model, seed=1, rank=4), lora_for(model, seed=2, rank=2)
    return found


CASES = [
    *(Case(name, cfg=cfg) for name in NAMES for cfg in (1.0, 4.0, 7.5)),
    *(Case(name, batch=3) for name in NAMES),
    *(Case(name, lengths=(7, 40)) for name in NAMES),
    Case("lumina2", batch=3, lengths=(40, 7), cfg=7.5),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_asymmetric_sampling_equals_two_models(models, case):
    model, style, neutral = models[case.name]
    actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    truth = run(side_by_side(merged(case.name, style), merged(case.name, neutral), case), case)
    close(actual, truth, 1e-4)
    plain = run(cfg_guider(model, case), case)
    one_sided = run(cfg_guider(merged(case.name, style), case), case)
    for other in (plain, one_sided) if case.cfg != 1 else (plain,):
        assert (actual - other).abs().max() > 30 * (actual - truth).abs().max()  # it is neither of these


def denoised(patcher, case: Case) -> list[torch.Tensor]:
    """What the host makes of both sides in the first step, before CFG puts them together."""
    import comfy.samplers

    seen = []

    def calc(args):
        both = comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )
        seen.append(both)
        return both

    patcher = patcher.clone()
    patcher.set_model_sampler_calc_cond_batch_function(calc)
    run(cfg_guider(patcher, case), case)
    return seen[0]


@pytest.mark.parametrize("name", NAMES)
def test_one_forward_equals_two_models(models, name):
    """Cond and uncond in one batch, against a forward of each patched model."""
    model, style, neutral = models[name]
    case = Case(name, batch=2)
    actual = denoised(asymmetric(model, style, neutral), case)
    close(actual[0], denoised(merged(name, style), case)[0], 1e-5)
    close(actual[1], denoised(merged(name, neutral), case)[1], 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_model_is_bit_identical_afterwards(models, name):
    model, style, neutral = models[name]
    case = Case(name)
    run(cfg_guider(model, case), case)  # HiDream-O1 fills its own cache, which changes the last digits
    before = run(cfg_guider(model, case), case)
    run(cfg_guider(asymmetric(model, style, neutral), case), case)
    assert torch.equal(run(cfg_guider(model, case), case), before)
    assert not any(module._forward_hooks for module in model.model.diffusion_model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_live_equals_merged(models, name):
    """The same LoRA on both branches, at an odd strength."""
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    model, style, _ = models[name]
    case = Case(name)
    actual = run(cfg_guider(attach(model, LiveLoRA(style, 0.7)), case), case)
    close(actual, run(cfg_guider(merged(name, style, strength=0.7), case), case), 1e-5)


def test_live_loras_of_several_nodes_add_up(models):
    from i2l.i2l_core.host.live.engine import attach, attached
    from i2l.i2l_core.host.live.loras import LiveLoRA

    model, style, neutral = models["lumina2"]
    case = Case("lumina2")
    twice = attach(attach(model, LiveLoRA(style, 0.7)), LiveLoRA(neutral, 0.7))
    assert [live.lora for live in attached(twice)] == [style, neutral]
    assert not attached(model)
    close(
        run(cfg_guider(twice, case), case),
        run(cfg_guider(merged("lumina2", style, neutral, strength=0.7), case), case),
        1e-5,
    )


@pytest.mark.parametrize("name", ["lumina2", "flux2"])
def test_a_stock_lora_below_is_kept(models, name):
    import comfy.sd

    from i2l.i2l_core.host.lora_model import PredictedLoRA

    model, style, neutral = models[name]
    other = dict(PredictedLoRA(lora_for(model, seed=5)))
    case = Case(name)

    def with_stock(patcher):
        return comfy.sd.load_lora_for_models(patcher, None, dict(other), 0.8, 0.0)[0]

    actual = run(cfg_guider(asymmetric(with_stock(model), style, neutral), case), case)
    truth = side_by_side(with_stock(merged(name, style)), with_stock(merged(name, neutral)), case)
    close(actual, run(truth, case), 1e-4)
    above = run(cfg_guider(with_stock(asymmetric(model, style, neutral)), case), case)  # the order is free
    close(above, actual, 1e-5)


def control_net(channels: int, tokens: int):
    """Core's own base class, with a fixed picture of control in place of a network."""
    import comfy.controlnet

    class Fixed(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            gen = torch.Generator().manual_seed(4)
            one = torch.randn(1, tokens, channels, generator=gen).expand(x_noisy.shape[0], -1, -1)
            return {"input": [one], "output": [one * 0.5]}

        def copy(self):
            copied = Fixed()
            self.copy_to(copied)
            return copied

    return Fixed()


def test_a_controlnet_on_top(models):
    model, style, neutral = models["flux2"]
    case = Case("flux2", extra={"control": control_net(256, 16), "control_apply_to_uncond": False})
    actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    truth = run(side_by_side(merged("flux2", style), merged("flux2", neutral), case), case)
    close(actual, truth, 1e-4)
    free = Case("flux2")
    assert (actual - run(cfg_guider(asymmetric(model, style, neutral), free), free)).abs().max() > 0.01


@pytest.mark.parametrize("first", [True, False])
def test_patches_and_wrappers_of_other_packs(models, first):
    """An attention patch, a forward wrapper and a replaced forward, set before or after ours."""
    model, style, neutral = models["lumina2"]
    case = Case("lumina2")
    calls = []

    def others(patcher):
        patcher = patcher.clone()

        def patch(args):
            calls.append("patch")
            return {"img": args["img"] * 1.1}

        def wrapper(apply_model, options):
            calls.append("wrapper")
            return apply_model(options["input"], options["timestep"], **options["c"]) * 0.9

        patcher.set_model_patch(patch, "double_block")
        patcher.set_model_unet_function_wrapper(wrapper)
        return patcher

    styled = asymmetric(others(model), style, neutral) if first else others(asymmetric(model, style, neutral))
    actual = run(cfg_guider(styled, case), case)
    assert {"patch", "wrapper"} == set(calls)
    truth = side_by_side(others(merged("lumina2", style)), others(merged("lumina2", neutral)), case)
    close(actual, run(truth, case), 1e-4)


def test_core_dual_model_guider_on_clones_still_runs_one_set_of_weights(models):
    """Why this exists. When core mends it this test fails: then say so in the docs."""
    from i2l.i2l_core.host.patch import apply_merged

    model, style, neutral = models["flux2"]
    case = Case("flux2")
    clones = run(side_by_side(apply_merged(model, style, 1.0), apply_merged(model, neutral, 1.0), case), case)
    truth = run(side_by_side(merged("flux2", style), merged("flux2", neutral), case), case)
    assert (clones - truth).abs().max() > 0.05 * truth.abs().max()
    plain_cfg = run(cfg_guider(merged("flux2", style), case), case)
    close(clones, plain_cfg, 1e-4)


def test_guiders_that_order_their_conds_otherwise(models):
    """Dual CFG puts the negative one first; what counts is what the guider calls it."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    case = Case("lumina2")
    model, style, neutral = models["lumina2"]
    positive, negative = case.conds()

    def dual(patcher):
        guider = Guider_DualCFG(patcher)
        guider.set_conds(positive, positive, negative)
        guider.set_cfg(1.0, 4.0, nested=False)
        return guider

    # the middle prompt is the positive one, so what remains is plain CFG
    actual = run(dual(asymmetric(model, style, neutral)), case)
    close(actual, run(cfg_guider(asymmetric(model, style, neutral), case), case), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_acts_only_inside(models, name):
    """Live in the first half, nothing in the second: equals changing the model half-way."""
    import comfy.samplers

    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA
    from i2l.i2l_core.schedule import Schedule

    model, style, _ = models[name]
    case = Case(name)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 4)

    def denoise(patcher, latent, part, noise):
        guider = cfg_guider(patcher, case)
        euler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, latent, euler, part, disable_pbar=True, seed=1)

    end = next(
        k / 1000 for k in range(1001) if sampling.percent_to_sigma(k / 1000) < (sigmas[1] + sigmas[2]) / 2
    )
    zero = torch.zeros_like(case.noise())
    actual = denoise(attach(model, LiveLoRA(style, schedule=Schedule(end=end))), zero, sigmas, case.noise())
    half = denoise(merged(name, style), zero, sigmas[:3], case.noise())
    truth = denoise(build(name), half, sigmas[2:], zero)
    close(actual, truth, 1e-4)
    assert (actual - denoise(build(name), zero, sigmas, case.noise())).abs().max() > 1e-3


def test_tags_choose_single_conditionings(models):
    """Two prompts on the positive side; the style acts on one of them."""
    from i2l.i2l_core.host.live.branches import tagged
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    model, style, _ = models["flux2"]
    case = Case("flux2", cfg=1.0)
    one, two = case.conds()
    plain, styled = build("flux2"), merged("flux2", style)

    def predict(patcher, positive):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(positive, two)
        guider.set_cfg(1.0)
        sampling = patcher.get_model_object("model_sampling")
        noise = case.noise()
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 1)
        with torch.inference_mode():
            return guider.sample(
                noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, seed=1
            )

    both = predict(attach(model, LiveLoRA(style, tag="ink")), [*tagged(one, "ink"), *two])
    close(both, (predict(styled, one) + predict(plain, two)) / 2, 1e-5)  # core averages them


@pytest.mark.parametrize("name", NAMES)
class TestMasks:
    def live(self, models, name, mask):
        from i2l.i2l_core.host.live.engine import attach
        from i2l.i2l_core.host.live.loras import LiveLoRA

        model, style, _ = models[name]
        case = Case(name, batch=2, lengths=(7, 40))
        return run(cfg_guider(attach(model, LiveLoRA(style, mask=mask)), case), case), case

    def test_ones_change_nothing(self, models, name):
        with_mask, _ = self.live(models, name, torch.ones(1, 33, 33))
        without, _ = self.live(models, name, None)
        close(with_mask, without, 1e-5)

    def test_zeros_are_the_plain_model(self, models, name):
        with_mask, case = self.live(models, name, torch.zeros(1, 33, 33))
        close(with_mask, run(cfg_guider(models[name][0], case), case), 1e-6)

    def test_each_picture_of_a_batch_has_its_own(self, models, name):
        mixed, _ = self.live(models, name, torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))
        ones, _ = self.live(models, name, torch.ones(1, 8, 8))
        zeros, _ = self.live(models, name, torch.zeros(1, 8, 8))
        close(mixed[0], ones[0], 1e-5)
        close(mixed[1], zeros[1], 1e-5)

    def test_a_half_changes_that_half_more(self, models, name):
        mask = torch.zeros(1, 8, 8)
        mask[..., :4] = 1.0
        half, _ = self.live(models, name, mask)
        zeros, _ = self.live(models, name, torch.zeros(1, 8, 8))
        change = (half - zeros).abs()
        middle = change.shape[-1] // 2
        assert change[..., :middle].mean() > 1.2 * change[..., middle:].mean()


@pytest.mark.parametrize(
    ("name", "layer", "tokens", "first", "pictures"),
    [  # of 4x4 image tokens each, and 4x6 of a reference
        ("lumina2", "layers.0.attention.qkv", 32 + 32, 32, 1),  # text and picture are filled up
        ("lumina2", "context_refiner.0.attention.qkv", 32, None, 1),
        (
            "z_image_omni",
            "noise_refiner.0.attention.qkv",
            32 + 32,
            32,
            1,
        ),  # the reference is before the picture
        ("z_image_omni", "siglip_refiner.0.attention.qkv", 32, None, 1),
        ("flux2", "double_blocks.0.img_attn.qkv", 16, 0, 1),
        ("flux2", "double_blocks.0.txt_attn.qkv", 512, None, 1),
        ("flux2", "single_blocks.0.linear1", 512 + 16, 512, 1),
        ("qwen_image", "transformer_blocks.0.attn.to_q", 16 + 24, 0, 1),
        ("qwen_image", "transformer_blocks.0.attn.add_q_proj", 40, None, 1),
        ("qwen_image", "transformer_blocks.0.attn.to_add_out", 40, None, 1),
        ("qwen_image", "transformer_blocks.0.txt_mlp.net.2", 40, None, 1),
        ("qwen_image", "txt_in", 40, None, 1),
        ("qwen_image", "transformer_blocks.0.img_mod.1", None, None, 1),
        ("qwen_image_layered", "img_in", 3 * 16 + 24, 0, 3),
    ],
)
def test_each_token_of_a_picture_has_its_weight(host, name, layer, tokens, first, pictures):
    from i2l.i2l_core.host.live.image_tokens import ImageTokens

    mask = torch.rand(1, 4, 4)
    expected = mask.mean().repeat(1, tokens or 1)
    if first is not None:
        expected[:, first : first + 16 * pictures] = mask.flatten().repeat(pictures)
    x = torch.zeros(2, *tiny_models.LATENTS[name])
    arguments = (
        {"ref_latents": references(name)["reference_latents"]} if name.startswith(("qwen", "z_image")) else {}
    )
    found = ImageTokens.read(build(name).model.diffusion_model, x, arguments)
    close(found.weigh(mask, layer, tokens), expected, 1e-6)


def out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("no room")


def broken(*_: Any) -> None:
    raise RuntimeError("a bug in another pack")


def interrupted(*_: Any) -> None:
    import comfy.model_management

    comfy.model_management.interrupt_current_processing(True)  # as the Stop button does, in another thread
    comfy.model_management.throw_exception_if_processing_interrupted()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [out_of_memory, broken, interrupted])
def test_whatever_ends_a_forward_leaves_the_model_clean(models, name, stop):
    """In the middle of the network, with the hooks in place."""
    import comfy.model_management

    model, style, neutral = models[name]
    case = Case(name)
    run(cfg_guider(model, case), case)  # as above
    before = run(cfg_guider(model, case), case)
    styled = asymmetric(model, style, neutral)
    expected = run(cfg_guider(styled, case), case)
    middle = [m for m in model.model.diffusion_model.modules() if isinstance(m, torch.nn.Linear)][6]
    handle = middle.register_forward_pre_hook(stop)
    expects = (RuntimeError, comfy.model_management.InterruptProcessingException)
    try:
        with pytest.raises(expects):
            run(cfg_guider(styled, case), case)
    finally:
        handle.remove()
    assert not any(module._forward_hooks for module in model.model.diffusion_model.modules())
    assert torch.equal(run(cfg_guider(model, case), case), before)
    assert torch.equal(run(cfg_guider(styled, case), case), expected)


def test_two_samplers_share_a_model(models):
    """Styled, plain and styled otherwise, in turns, from clones of one model."""
    model, style, neutral = models["lumina2"]
    case = Case("lumina2")
    one, two = asymmetric(model, style, neutral), asymmetric(model, neutral)
    first = [run(cfg_guider(m, case), case) for m in (one, model, two)]
    for m, expected in zip((one, model, two), first, strict=True):
        assert torch.equal(run(cfg_guider(m, case), case), expected)


def test_regions_of_the_picture_keep_their_sides(models):
    """Prompts with an area and with a mask on the positive side: chunks of several shapes, and a copy for the same
    area on the negative side that carries the uuid of the positive one."""
    model, style, neutral = models["lumina2"]
    one, two, negative = (conditioning("lumina2", seed) for seed in range(3))
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6] = 1.0
    left = [[one[0][0], {"area": (8, 4, 0, 0), "strength": 1.0}]]
    masked = [[two[0][0], {"mask": mask, "mask_strength": 0.5}]]
    case = Case("lumina2", batch=2)
    case.conds = lambda: ([*left, *masked, *two], negative)  # type: ignore[method-assign]
    actual = denoised(asymmetric(model, style, neutral), case)
    close(actual[0], denoised(merged("lumina2", style), case)[0], 1e-5)
    close(actual[1], denoised(merged("lumina2", neutral), case)[1], 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_cast_when_they_are_used(models, name):
    """As with --lowvram and offloading: the host fetches each weight for its forward."""
    style, neutral = models[name][1:]
    model, case = build(name), Case(name)
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    truth = run(side_by_side(merged(name, style), merged(name, neutral), case), case)
    close(actual, truth, 1e-4)


@torch.inference_mode()  # as the host runs nodes
def test_quantised_weights(models):
    """fp8 as in a checkpoint: the LoRA is added unrounded to what the fp8 layers give."""
    from i2l.i2l_core.host.patch import apply_merged

    quantised = tiny_models.quantised("float8_e4m3fn")
    _, style, neutral = models["flux2"]
    plain = build("flux2")
    by_name = dict(quantised.model.diffusion_model.named_parameters())
    for key, weight in plain.model.diffusion_model.named_parameters():
        other = by_name[key]
        weight.copy_((other.dequantize() if hasattr(other, "_qdata") else other).float())
    case = Case("flux2")
    twin = tiny_models.twin(plain, "flux2")
    truth = run(side_by_side(apply_merged(plain, style, 1.0), apply_merged(twin, neutral, 1.0), case), case)
    actual = run(cfg_guider(asymmetric(quantised, style, neutral), case), case)
    close(actual, truth, 1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_a_compiled_model_runs_uncompiled_and_says_so_once(models, caplog, first):
    """Core's Torch Compile Model before and after ours. Its merged and plain runs stay compiled."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, style, neutral = models["lumina2"]
    case = Case("lumina2")
    compiled = model.clone()
    if first:
        set_torch_compile_wrapper(compiled, backend="eager")
        styled = asymmetric(compiled, style, neutral)
    else:
        styled = asymmetric(model, style, neutral)
        set_torch_compile_wrapper(styled, backend="eager")
    expected = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    for _ in range(2):
        close(run(cfg_guider(styled, case), case), expected, 1e-5)
    assert len([record for record in caplog.records if "uncompiled" in record.message]) == 1


@pytest.mark.parametrize("way", ["live", "merged"])
def test_the_prefix_cache_of_hidream_never_outlives_its_lora(models, way):
    """Same prompt, other LoRA: a second run equals a fresh one, and the plain model after it too."""
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA
    from i2l.i2l_core.host.patch import apply_merged

    model, style, neutral = models["hidream_o1"]
    case = Case("hidream_o1", lengths=(7, 7))

    def styled(patcher, lora):
        return attach(patcher, LiveLoRA(lora)) if way == "live" else apply_merged(patcher, lora, 1.0)

    plain = run(cfg_guider(build("hidream_o1"), case), case)
    fresh = [run(cfg_guider(styled(build("hidream_o1"), lora), case), case) for lora in (style, neutral)]
    for lora, expected in zip((style, neutral, style), (*fresh, fresh[0]), strict=True):
        close(run(cfg_guider(styled(model, lora), case), case), expected, 5e-5)
        close(run(cfg_guider(model, case), case), plain, 5e-5)
    assert (fresh[0] - fresh[1]).abs().max() > 0.01


def test_hidream_with_one_prompt_on_both_branches(models):
    """Equal prompts would share their keys and values; the branches must not."""
    model, style, neutral = models["hidream_o1"]
    case = Case("hidream_o1")
    case.conds = lambda: (conditioning("hidream_o1", 3), conditioning("hidream_o1", 3))  # type: ignore[method-assign]
    actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    truth = run(side_by_side(merged("hidream_o1", style), merged("hidream_o1", neutral), case), case)
    close(actual, truth, 1e-4)


@pytest.fixture(scope="module")
def releases(host):
    models = {name: build(name) for name in ("qwen_image", *tiny_models.RELEASES)}
    return {name: (model, lora_for(model, seed=1), lora_for(model, seed=2)) for name, model in models.items()}


@pytest.mark.parametrize("name", ["qwen_image", *tiny_models.RELEASES])
class TestReferencePictures:
    """Qwen-Image-Edit, -2511 and Z-Image Omni, of which the last two look at the time twice."""

    def test_asymmetric_sampling_equals_two_models(self, releases, name):
        model, style, neutral = releases[name]
        case = Case(name, batch=2, extra=references(name))
        actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
        truth = run(side_by_side(merged(name, style), merged(name, neutral), case), case)
        close(actual, truth, 1e-4)
        free = Case(name, batch=2)
        assert (actual - run(cfg_guider(asymmetric(model, style, neutral), free), free)).abs().max() > 1e-2

    def test_masks_find_the_picture(self, releases, name):
        from i2l.i2l_core.host.live.engine import attach
        from i2l.i2l_core.host.live.loras import LiveLoRA

        model, style, _ = releases[name]
        case = Case(name, cfg=1.0, batch=2, lengths=(40, 7), extra=references(name))

        def masked(mask):
            return run(cfg_guider(attach(model, LiveLoRA(style, mask=mask)), case), case)

        left = torch.zeros(1, 8, 8)
        left[..., :4] = 1.0
        everywhere = run(cfg_guider(attach(model, LiveLoRA(style)), case), case)
        nowhere = run(cfg_guider(model, case), case)
        close(masked(torch.ones(1, 8, 8)), everywhere, 1e-5)
        close(masked(torch.zeros(1, 8, 8)), nowhere, 1e-6)
        change = (masked(left) - nowhere).abs()
        assert change[..., :4].mean() > 1.2 * change[..., 4:].mean()


def test_hidream_with_reference_pictures(models):
    """Its eyes look once for all rows; a LoRA on them makes the branches run apart."""
    model, style, neutral = models["hidream_o1"]
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    case = Case("hidream_o1", extra={"reference_latents": [picture]})
    actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    truth = run(side_by_side(merged("hidream_o1", style), merged("hidream_o1", neutral), case), case)
    close(actual, truth, 1e-4)
