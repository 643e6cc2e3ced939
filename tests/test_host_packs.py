"""Live LoRAs beside other packs: each either draws what separately patched models draw beside it, or is refused.

Nothing here is another pack's code. Each function does to a MODEL what packs of its kind do.
"""

from __future__ import annotations

import functools
import gc
import itertools
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from samplings import Case, cfg_guider, merged, run, side_by_side
from tiny_models import build, close, conditioning, lora_for

from i2l.i2l_core.errors import I2LError

NAME = "lumina2"
TILES = "tile batch size 1"
ORDER = "another order"
MASK = "Style Region instead of the mask"
PICTURES = "masks of the pictures"
NAG = "such as NAG .* merged"


# what packs do


def alone(model: Any) -> Any:
    """One forward for each batch row, to save memory."""

    def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        x, t, count = given["input"], given["timestep"], len(given["input"])

        def part(value: Any, i: int) -> Any:
            return (
                value[i : i + 1] if torch.is_tensor(value) and value.ndim and len(value) == count else value
            )

        parts = ({name: part(value, i) for name, value in given["c"].items()} for i in range(count))
        return torch.cat([apply_model(x[i : i + 1], t[i : i + 1], **c) for i, c in enumerate(parts)])

    return with_function(model, wrapper)


def backwards(model: Any) -> Any:
    """The rows in another order."""

    def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        x, count = given["input"], len(given["input"])
        c = {
            name: value.flip(0) if torch.is_tensor(value) and value.ndim and len(value) == count else value
            for name, value in given["c"].items()
        }
        return apply_model(x.flip(0), given["timestep"].flip(0), **c).flip(0)

    return with_function(model, wrapper)


def backwards_by_wrapper(model: Any) -> Any:
    """The same by a wrapper with a key."""
    import comfy.patcher_extension

    def wrapper(
        executor: Any, x: Any, t: Any, concat: Any, text: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        return executor(x.flip(0), t.flip(0), concat, text.flip(0), *args, **kwargs).flip(0)

    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "pack", wrapper)
    return clone


def tiles_together(model: Any) -> Any:
    """Both halves of all rows in one batch (MultiDiffusion)."""

    def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        both = torch.cat(given["input"].chunk(2, dim=-1))

        def more(value: Any) -> Any:
            many = torch.is_tensor(value) and value.ndim
            return value.repeat(len(both) // len(value), *[1] * (value.ndim - 1)) if many else value

        c = {name: more(value) for name, value in given["c"].items()}
        return torch.cat(apply_model(both, given["timestep"].repeat(2), **c).chunk(2), dim=-1)

    return with_function(model, wrapper)


def tiles_in_turn(model: Any) -> Any:
    """One half of all rows after the other, with a text tensor of its own."""

    def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        c = {**given["c"], "c_crossattn": given["c"]["c_crossattn"].clone()}
        halves = given["input"].chunk(2, dim=-1)
        return torch.cat([apply_model(half.contiguous(), given["timestep"], **c) for half in halves], dim=-1)

    return with_function(model, wrapper)


def noisy_text(model: Any) -> Any:
    """Noise on the text tensors, before they go into the model (CADS)."""

    def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        noise = torch.randn(
            1, *given["c"]["c_crossattn"].shape[1:], generator=torch.Generator().manual_seed(3)
        )
        c = {**given["c"], "c_crossattn": given["c"]["c_crossattn"] + 0.2 * noise}
        return apply_model(given["input"], given["timestep"], **c)

    return with_function(model, wrapper)


def with_function(model: Any, wrapper: Callable[..., Any]) -> Any:
    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def row_behind(model: Any) -> Any:
    """A row more inside of the network: a negative prompt behind the batch (NAG)."""
    negative = conditioning(NAME, 9)[0][0]

    def add(executor: Any, x: Any, t: Any, context: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        longer = torch.cat([x, x[-1:]]), torch.cat([t, t[-1:]]), torch.cat([context, negative])
        return executor(*longer, *args, **kwargs)[: len(x)]

    return inside(model, add)


def skipping(model: Any) -> Any:
    """Every second forward is not run; the model's last answer is given again (step caches)."""
    kept: dict[Any, torch.Tensor] = {}

    def skip(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        key = tuple(kwargs["transformer_options"]["uuids"])
        if key in kept:
            return kept.pop(key)
        kept[key] = executor(x, *args, **kwargs)
        return kept[key]

    return inside(model, skip)


def inside(model: Any, wrapper: Callable[..., Any]) -> Any:
    import comfy.patcher_extension

    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "pack", wrapper)
    return clone


def own_attention(model: Any) -> Any:
    """An attention of its own (SageAttention and its like), which here cools it."""
    clone = model.clone()

    def attention(function: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(q * 0.9, *args, **kwargs)

    clone.model_options["transformer_options"]["optimized_attention_override"] = attention
    return clone


def compiled_blocks(model: Any) -> Any:
    """torch.compile, block by block."""
    clone = model.clone()
    for i, block in enumerate(clone.model.diffusion_model.layers):
        clone.add_object_patch(f"diffusion_model.layers.{i}", torch.compile(block, backend="eager"))
    return clone


def hidden_blocks(model: Any) -> Any:
    """Blocks behind a module that stands in their place while the model runs (first-block caches)."""

    class All(torch.nn.Module):
        def __init__(self, blocks: Any) -> None:
            super().__init__()
            self.blocks = list(blocks)  # no submodules

        def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            for block in self.blocks:
                x = block(x, *args, **kwargs)
            return x

    def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        network = model.model.diffusion_model
        blocks = network.layers
        network.layers = torch.nn.ModuleList([All(blocks)])
        try:
            return apply_model(given["input"], given["timestep"], **given["c"])
        finally:
            network.layers = blocks

    return with_function(model, wrapper)


def as_it_is(model: Any) -> Any:
    return model


# what of ours stands beside them


@dataclass
class Ours:
    """A way to attach LoRAs, and the strengths of style and neutral that the two sides have then."""

    live: Callable[[Any, Any, Any], tuple[Any, Case]]
    positive: tuple[float, float] = (1.0, 0.0)
    negative: tuple[float, float] = (1.0, 0.0)


def asymmetric_cfg(model: Any, style: Any, neutral: Any) -> tuple[Any, Case]:
    from i2l.i2l_core.host.guidance import asymmetric
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    return asymmetric(model, PredictedLoRA(style), PredictedLoRA(neutral)), Case(NAME)


def style_region(model: Any, style: Any, _: Any) -> tuple[Any, Case]:
    from i2l.i2l_core.host.lora_model import PredictedLoRA
    from i2l.i2l_core.host.regions import add_region

    case = Case(NAME)
    positive, negative = case.conds()
    styled, regions = add_region(model, positive, PredictedLoRA(style), torch.ones(1, 8, 8))
    case.conds = lambda: (regions, negative)  # type: ignore[method-assign]
    return styled, case


def live(**given: Any) -> Callable[[Any, Any, Any], tuple[Any, Case]]:
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    return lambda model, style, _: (attach(model, LiveLoRA(style, **given)), Case(NAME))


def half_mask(model: Any, style: Any, neutral: Any) -> tuple[Any, Case]:
    return live(mask=torch.full((1, 8, 8), 0.5))(model, style, neutral)


def level_curve(model: Any, style: Any, neutral: Any) -> tuple[Any, Case]:
    from i2l.i2l_core.schedule import Curve, Schedule

    return live(schedule=Schedule(0.0, 1.0, Curve(((0.0, 0.5),))))(model, style, neutral)


def both_sides(model: Any, style: Any, neutral: Any) -> tuple[Any, Case]:
    return live()(model, style, neutral)


OURS = {
    "asymmetric_cfg": Ours(asymmetric_cfg, negative=(0.0, 1.0)),
    "style_region": Ours(style_region, negative=(0.0, 0.0)),
    "mask": Ours(half_mask, (0.5, 0.0), (0.5, 0.0)),
    "schedule": Ours(level_curve, (0.5, 0.0), (0.5, 0.0)),
    "both_sides": Ours(both_sides),
}
REFUSED: dict[tuple[Callable[..., Any], str], str] = {  # all else is right
    (alone, "asymmetric_cfg"): TILES,
    (alone, "style_region"): TILES,
    (backwards, "asymmetric_cfg"): ORDER,
    (backwards, "style_region"): ORDER,
    (backwards_by_wrapper, "asymmetric_cfg"): ORDER,
    (backwards_by_wrapper, "style_region"): ORDER,
    (tiles_together, "asymmetric_cfg"): TILES,
    (tiles_together, "style_region"): TILES,
    (tiles_together, "mask"): MASK,
    (tiles_in_turn, "mask"): MASK,
    (row_behind, "asymmetric_cfg"): NAG,
    (row_behind, "style_region"): NAG,
}
PACKS = [
    alone,
    backwards,
    backwards_by_wrapper,
    tiles_together,
    tiles_in_turn,
    noisy_text,
    row_behind,
    skipping,
    own_attention,
    compiled_blocks,
    hidden_blocks,
]


@pytest.fixture(scope="module")
def loras(host):
    """A style and a neutral LoRA of another rank."""
    model = build(NAME)
    return lora_for(model, seed=1, rank=4), lora_for(model, seed=2, rank=2)


@functools.lru_cache(maxsize=16)
def patched(style: Any, neutral: Any, strengths: tuple[float, float]) -> Any:
    """A model of its own with both LoRAs in its weights."""
    scaled = [lora.scaled(s) for lora, s in zip((style, neutral), strengths, strict=True)]
    return merged(NAME, *scaled)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.__name__)
@pytest.mark.parametrize("first", [True, False], ids=["pack_first", "pack_last"])
def test_beside_a_pack(loras, pack: Callable[[Any], Any], ours: str, first: bool):
    model, (style, neutral) = build(NAME), loras
    if first:
        styled, case = OURS[ours].live(pack(model), style, neutral)
    else:
        styled, case = OURS[ours].live(model, style, neutral)
        styled = pack(styled)
    guider = cfg_guider(styled, case)
    refusal = REFUSED.get((pack, ours))
    if refusal:
        with pytest.raises(I2LError, match=refusal):
            run(guider, case)
    else:
        positive, negative = (
            patched(style, neutral, side) for side in (OURS[ours].positive, OURS[ours].negative)
        )
        beside = (
            as_it_is if pack is compiled_blocks else pack
        )  # ComfyUI's merged LoRAs miss blocks renamed so
        truth = run(side_by_side(beside(positive), beside(negative), Case(NAME)), Case(NAME))
        close(run(guider, case), truth, 1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network(model).modules())


def network(model: Any) -> Any:
    return model.model.diffusion_model


@pytest.mark.parametrize("ours", ["both_sides", "mask", "schedule"])
@pytest.mark.parametrize("cache", ["EasyCacheNode", "LazyCacheNode"])
def test_beside_the_step_caches_of_core(loras, cache: str, ours: str):
    import comfy_extras.nodes_easycache as caches

    def skipping(model: Any) -> Any:
        return getattr(caches, cache).execute(model, 5.0, 0.0, 1.0, False)[0]

    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)
    cached = run(cfg_guider(skipping(styled), case), case, 6)
    truth = patched(style, neutral, OURS[ours].positive)
    close(cached, run(cfg_guider(skipping(truth), case), case, 6), 1e-4)
    assert (cached - run(cfg_guider(truth, case), case, 6)).abs().max() > 1e-3  # it did skip


def test_each_row_of_the_table_names_a_test():
    root = Path(__file__).resolve().parent.parent
    text = (root / "docs" / "compatibility.md").read_text("utf-8")
    sources = {path.name: path.read_text("utf-8") for path in (root / "tests").glob("test_*.py")}
    everything = "".join(sources.values())
    names = re.findall(r"\btest_\w+(?!\w*\.py)\b", re.sub(r"tests/test_\w+\.py", "", text))
    assert len(set(names)) > 20
    assert [name for name in names if f"def {name}(" not in everything] == []
    assert [name for name in re.findall(r"tests/(test_\w+\.py)", text) if name not in sources] == []
    parts = text.split("\n## ")
    ours = "".join(part for part in parts if part.startswith(("Which rows are whose", "What runs")))
    rows = [line for line in ours.splitlines() if line.startswith("| ") and not line.startswith("| beside")]
    assert len(rows) > 20
    assert [row for row in rows if "test_" not in row] == []


# whose forward it is


def live_on(model: Any, lora: Any, **given: Any) -> Any:
    from i2l.i2l_core.host.live.engine import attach
    from i2l.i2l_core.host.live.loras import LiveLoRA

    return attach(model, LiveLoRA(lora, **given))


@pytest.mark.parametrize(
    ("loaded", "sides"),
    [(loaded, sides) for loaded in ("apart", "clones") for sides in ("positive", "negative", "both")],
)
def test_each_model_of_a_dual_guider_has_its_own_loras(loras, loaded: str, sides: str):
    style, neutral = loras
    one = build(NAME)
    two = build(NAME) if loaded == "apart" else one
    positive = live_on(one, style) if sides != "negative" else one.clone()
    negative = live_on(two, neutral) if sides != "positive" else two.clone()
    case = Case(NAME)
    if (loaded, sides) == ("clones", "negative"):  # nothing tells whose forward it is
        with pytest.raises(I2LError, match="use Asymmetric CFG with one model"):
            run(side_by_side(positive, negative, case), case)
        return
    actual = run(side_by_side(positive, negative, case), case)
    with_style = merged(NAME, style) if sides != "negative" else build(NAME)
    with_neutral = merged(NAME, neutral) if sides != "positive" else build(NAME)
    truth = run(side_by_side(with_style, with_neutral, case), case)
    close(actual, truth, 1e-4)
    for model in (one, two):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network(model).modules())


@pytest.mark.parametrize("ours", OURS)
def test_a_plain_negative_model_stays_plain(loras, ours: str):
    """Whatever of ours is on the positive model of a Dual Model guider."""
    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)
    truth = run(
        side_by_side(patched(style, neutral, OURS[ours].positive), build(NAME), Case(NAME)), Case(NAME)
    )
    close(run(side_by_side(styled, build(NAME), case), case), truth, 1e-4)


def test_sides_of_a_guest_are_not_guessed(loras):
    """Asymmetric CFG on the negative model of a Dual Model guider, which does not tell it that it is negative."""
    style, neutral = loras
    styled, case = asymmetric_cfg(build(NAME), style, neutral)
    with pytest.raises(I2LError, match="positive or the negative side"):
        run(side_by_side(build(NAME), styled, case), case)


@pytest.mark.parametrize("on_negative", [False, True])
def test_a_negative_model_with_other_layers_is_left_alone(loras, on_negative: bool):
    """With fewer layers; hooks never stay."""
    style, _ = loras
    one, small = build(NAME), build(NAME, n_layers=2)
    case = Case(NAME)
    plain = run(side_by_side(build(NAME), build(NAME, n_layers=2), case), case)
    if on_negative:
        negative = live_on(small, lora_for(small, seed=3))
        actual = run(side_by_side(one, negative, case), case)
    else:
        actual = run(side_by_side(live_on(one, style), small, case), case)
    assert (actual - plain).abs().max() > 1e-3
    if not on_negative:
        close(actual, run(side_by_side(merged(NAME, style), small, case), case), 1e-4)
    for model in (one, small):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network(model).modules())
    close(run(side_by_side(one, small, case), case), plain, 1e-6)


def test_hooks_are_off_when_the_negative_model_fails(loras):
    style, neutral = loras
    one, two = build(NAME), build(NAME)
    handle = (
        network(two)
        .layers[1]
        .register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("full")))
    )
    try:
        with pytest.raises(RuntimeError, match="full"):
            run(side_by_side(live_on(one, style), live_on(two, neutral), Case(NAME)), Case(NAME))
    finally:
        handle.remove()
    for model in (one, two):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network(model).modules())


def perp_neg(model: Any) -> Any:
    from comfy_extras.nodes_perpneg import PerpNeg

    return PerpNeg.execute(model, conditioning(NAME, 7), 1.0)[0]


@pytest.mark.parametrize("ours", OURS)
def test_a_prompt_that_a_node_brings_itself_is_on_no_side(loras, ours: str):
    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)
    guider = cfg_guider(perp_neg(styled), case)
    if OURS[ours].positive != OURS[ours].negative:
        with pytest.raises(I2LError, match="Perp-Neg Guider instead of Perp-Neg"):
            run(guider, case)
        return
    truth = perp_neg(patched(style, neutral, OURS[ours].positive))
    close(run(guider, case), run(cfg_guider(truth, case), case), 1e-4)


def test_perp_neg_guider_has_its_empty_prompt_on_the_negative_side(loras):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg, perp_neg

    style, neutral = loras
    case = Case(NAME)
    positive, negative = case.conds()

    class Truth(Guider_PerpNeg):
        """Each prompt with a model of its own."""

        def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
            import comfy.samplers

            def denoised(model: Any, side: str) -> torch.Tensor:
                return comfy.samplers.calc_cond_batch(model, [self.conds[side]], x, timestep, model_options)[
                    0
                ]

            pos = denoised(self.inner_model, "positive")
            neg, empty = (denoised(other, side) for side in ("negative", "empty_negative_prompt"))
            return perp_neg(x, pos, neg, empty, 1.0, 4.0)

    def guided(kind: Any, patcher: Any) -> torch.Tensor:
        guider = kind(patcher)
        guider.set_conds(positive, negative, conditioning(NAME, 7))
        guider.set_cfg(4.0, 1.0)
        return run(guider, case)

    negative_model = merged(NAME, neutral)
    import comfy.model_management

    comfy.model_management.load_models_gpu([negative_model])
    negative_model.pre_run()
    other = negative_model.model
    styled, _ = asymmetric_cfg(build(NAME), style, neutral)
    actual = guided(Guider_PerpNeg, styled)
    comfy.model_management.load_models_gpu([negative_model])
    close(actual, guided(Truth, merged(NAME, style)), 1e-4)


# samplers and nodes that call the model themselves


def sampled_by_hand(model: Any, case: Case, negative: Any = None) -> torch.Tensor:
    """Two Euler steps without any guider; with another model for the negative side, if given."""
    import comfy.model_management
    import comfy.sampler_helpers
    import comfy.samplers

    def options_of(patcher: Any) -> dict[str, Any]:
        options = patcher.model_options
        return {
            **options,
            "transformer_options": {**options["transformer_options"], "wrappers": patcher.wrappers},
        }

    patchers = [model] if negative is None else [model, negative]
    comfy.model_management.load_models_gpu(patchers)
    for patcher in patchers:
        patcher.pre_run()
    sides = zip(("positive", "negative"), case.conds(), strict=True)
    x = case.noise()
    conds = {side: comfy.sampler_helpers.convert_cond(cond) for side, cond in sides}
    conds = comfy.samplers.process_conds(model.model, x, conds, x.device)
    pos, neg = conds["positive"], conds["negative"]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    with torch.inference_mode():
        for sigma, after in itertools.pairwise(sigmas):
            if negative is None:
                found = comfy.samplers.sampling_function(
                    model.model, x, sigma[None], neg, pos, case.cfg, options_of(model)
                )
            else:
                batches: Any = ((model, pos), (negative, neg))
                one, other = (
                    comfy.samplers.calc_cond_batch(
                        patcher.model, [cond], x, sigma[None], options_of(patcher)
                    )[0]
                    for patcher, cond in batches
                )
                found = other + case.cfg * (one - other)
            x = x + (x - found) / sigma * (after - sigma)
    for patcher in patchers:
        patcher.cleanup()
    return x


@pytest.mark.parametrize("ours", [name for name in OURS if name != "style_region"])
def test_a_sampler_without_a_guider(loras, ours: str):
    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)
    positive, negative = (
        patched(style, neutral, side) for side in (OURS[ours].positive, OURS[ours].negative)
    )
    if positive is negative:
        negative = None
    close(sampled_by_hand(styled, case), sampled_by_hand(positive, case, negative), 1e-4)


def test_a_window_under_a_sampler_without_a_guider(loras):
    style, _ = loras
    case = Case(NAME, cfg=1.0)
    plain, full = (sampled_by_hand(model, case) for model in (build(NAME), merged(NAME, style)))
    windowed = sampled_by_hand(live_on(build(NAME), style, schedule=window(0.0, 0.0)), case)
    assert (windowed - plain).abs().max() > 1e-3  # the first step has it
    assert (windowed - full).abs().max() > 1e-3  # the second has it not
    never = sampled_by_hand(live_on(build(NAME), style, schedule=window(0.999, 1.0)), case)
    close(never, plain, 1e-6)


def window(start: float, end: float) -> Any:
    from i2l.i2l_core.schedule import Schedule

    return Schedule(start, end)


def calling_the_network(model: Any) -> Any:
    """A prediction of its own after each step, without telling the model whose (as some post-CFG guidance does)."""
    clone = model.clone()

    def after(args: dict[str, Any]) -> torch.Tensor:
        x, sigma, text = args["input"], args["sigma"], conditioning(NAME, 8)[0][0]
        own = args["model"].apply_model(x, sigma, c_crossattn=text, num_tokens=text.shape[1])
        return 0.7 * args["denoised"] + 0.3 * own

    clone.set_model_sampler_post_cfg_function(after)
    return clone


@pytest.mark.parametrize("ours", OURS)
def test_a_prediction_that_passes_our_wrappers_by(loras, ours: str):
    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)
    guider = cfg_guider(calling_the_network(styled), case)
    if ours in ("both_sides", "mask"):
        truth = calling_the_network(patched(style, neutral, OURS[ours].positive))
        close(run(guider, case), run(cfg_guider(truth, case), case), 1e-4)
        return
    with pytest.raises(I2LError, match="noise level" if ours == "schedule" else "a prompt of its own"):
        run(guider, case)


@pytest.mark.parametrize("ours", OURS)
def test_a_sampling_inside_of_a_sampling(loras, ours: str):
    """Detailers and tiled upscalers: another size, in the middle of a run, with the same model."""
    import comfy.samplers

    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)

    def sampled(patcher: Any, size: int, callback: Any = None) -> torch.Tensor:
        guider = cfg_guider(patcher, case)
        noise = torch.randn(1, 16, size, size, generator=torch.Generator().manual_seed(size))
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 2)
        euler = comfy.samplers.sampler_object("euler")
        zero = torch.zeros_like(noise)
        with torch.inference_mode():
            return guider.sample(noise, zero, euler, sigmas, callback=callback, disable_pbar=True, seed=1)

    outer, inner = sampled(styled, 8), sampled(styled, 12)
    nested: list[torch.Tensor] = []

    def another(*_: Any) -> None:
        nested.append(sampled(styled, 12))
        styled.model.current_patcher = styled  # which ComfyUI forgets at the end of any sampling

    found = sampled(styled, 8, another)
    assert torch.equal(found, outer)
    assert all(torch.equal(one, inner) for one in nested)


# batches in windows


def test_context_windows_over_a_batch_with_a_mask_for_each_picture(loras):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    style, _ = loras
    case = Case(NAME, batch=4)
    masks = torch.stack([torch.full((8, 8), value) for value in (0.0, 1.0, 0.3, 0.7)])
    styled = live_on(build(NAME), style, mask=masks)
    given: dict[str, Any] = dict(
        context_length=2, context_overlap=0, context_schedule="standard_static", context_stride=1
    )
    given |= dict(closed_loop=False, fuse_method="pyramid", dim=0, freenoise=False, causal_window_fix=True)
    windowed = ContextWindowsManualNode.execute(styled, **given).result[0]  # type: ignore[index]
    close(run(cfg_guider(windowed, case), case), run(cfg_guider(styled, case), case), 1e-4)


def test_masks_follow_the_pictures_that_a_window_takes(host):
    """With the one before the window in front, and pictures of the whole batch kept in it."""
    import comfy.context_windows

    from i2l.i2l_core.host.live.run import in_window

    pictures = torch.rand(6, 2, 2)
    window = comfy.context_windows.IndexListContextWindow([2, 3, 5], dim=0, total_frames=6)
    window.causal_anchor_index = 1  # type: ignore[attr-defined]
    masks, _ = in_window({7: pictures, 8: pictures[:1]}, {"context_window": window}, [0])
    assert torch.equal(masks[7], pictures[[0, 2, 3, 5]])
    assert torch.equal(masks[8], pictures[:1])
    frames = comfy.context_windows.IndexListContextWindow([2, 3], dim=2, total_frames=6)
    assert torch.equal(in_window({7: pictures}, {"context_window": frames}, [])[0][7], pictures)


# FLUX.2 beside reference pictures


@pytest.fixture(scope="module")
def flux(host):
    """The network, and a style and a neutral LoRA of another rank."""
    model = build("flux2")
    return model, lora_for(model, seed=1, rank=4), lora_for(model, seed=2, rank=2)


def edit(**values: Any) -> Case:
    """A prompt with a reference picture of other proportions."""
    reference = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(2))
    return Case("flux2", batch=2, extra={"reference_latents": [reference], **values})


def test_time_layers_on_a_doubled_batch(flux):
    """Reference method index_timestep_zero: time layers run on all rows at t, and again at t = 0."""
    model, style, neutral = flux
    case = edit(reference_latents_method="index_timestep_zero")
    from samplings import asymmetric

    actual = run(cfg_guider(asymmetric(model, style, neutral), case), case)
    close(actual, run(side_by_side(merged("flux2", style), merged("flux2", neutral), case), case), 1e-4)
    other = edit(reference_latents_method="index")
    assert (actual - run(cfg_guider(asymmetric(model, style, neutral), other), other)).abs().max() > 1e-3
    half = run(cfg_guider(live_on(model, style, mask=torch.full((1, 8, 8), 0.5)), case), case)
    close(half, run(cfg_guider(merged("flux2", style.scaled(0.5)), case), case), 1e-4)


def kv_cache(model: Any) -> Any:
    from comfy_extras.nodes_flux import FluxKVCache

    return FluxKVCache.execute(model).result[0]  # type: ignore[index]


def test_kv_cache_with_loras_that_differ_between_the_sides(flux):
    """In one step and in three. Its cache is of both sides at once, so the truth has one of its own on each side."""
    from samplings import asymmetric

    model, style, neutral = flux
    case = edit()
    actual = run(cfg_guider(kv_cache(asymmetric(model, style, neutral)), case), case)
    both = run(cfg_guider(kv_cache(live_on(model, style)), case), case)
    close(both, run(cfg_guider(kv_cache(merged("flux2", style)), case), case), 1e-4)
    alone = Case("flux2", cfg=1.0, batch=2, extra=case.extra)
    positive = run(cfg_guider(kv_cache(asymmetric(model, style, neutral)), alone), alone)
    close(positive, run(cfg_guider(kv_cache(merged("flux2", style)), alone), alone), 1e-4)
    assert (actual - both).abs().max() > 1e-3


@pytest.mark.parametrize("layer", ["single_blocks.0.linear1", "double_blocks.0.img_attn.qkv", "img_in"])
def test_a_mask_lies_on_the_picture_in_every_step_of_a_kv_cache(flux, layer: str):
    """From the second step on the reference's tokens are gone behind img_in."""
    model, style, _ = flux
    lora = style.only([target for target in style.layers if target.weight == layer])
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    linear, added = network(model).get_submodule(layer), []

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Any:  # behind our hooks

        def norms(module: Any, given: Any, out: torch.Tensor) -> None:
            plain = torch.nn.functional.linear(given[0], module.weight, module.bias)
            added.append((out - plain).norm(dim=-1))

        hook = linear.register_forward_hook(norms)
        try:
            return executor(*args, **kwargs)
        finally:
            hook.remove()

    case = edit()
    run(cfg_guider(kv_cache(inside(live_on(model, lora, mask=mask), watch)), case), case)
    text = 512 if layer.startswith("single") else 0
    assert len(added) == 3
    assert len({norms.shape[1] for norms in added}) == (1 if layer == "img_in" else 2)
    for norms in added:
        picture = norms[:, text : text + 16]
        assert picture[:, 8:].max() < 1e-4 * picture[:, :8].min()


def test_a_mask_is_refused_where_a_node_adds_tokens(flux):
    model, style, _ = flux

    def more(args: dict[str, Any]) -> dict[str, Any]:
        args["img"] = torch.cat([args["img"], args["img"][:, :3]], 1)
        args["img_ids"] = torch.cat([args["img_ids"], args["img_ids"][:, :3]], 1)
        return args

    styled = live_on(model, style, mask=torch.ones(1, 4, 4))
    styled.set_model_post_input_patch(more)
    with pytest.raises(I2LError, match="a node adds or removes tokens"):
        run(cfg_guider(styled, Case("flux2")), Case("flux2"))


# what ran and what should


def past_its_linears(model: Any, road: str) -> Any:
    """A MODEL whose Linears are computed from their weights, as fused kernels do; `road`: until when."""
    for name, module in network(model).named_modules():
        if name.endswith(("attention.qkv", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")):
            kind: Any = type(module)

            class Fused(kind):
                def __call__(self, x: torch.Tensor) -> torch.Tensor:
                    if road == "weight_function" and len(self.weight_function):
                        return super().__call__(x)
                    weight = self.weight
                    for function in self.weight_function:
                        weight = function(weight)
                    return torch.nn.functional.linear(x, weight, self.bias)

            module.__class__ = Fused
    return model


@pytest.mark.parametrize("ours", OURS)
def test_fused_linears_take_the_slow_road(loras, ours: str):
    style, neutral = loras
    model = past_its_linears(build(NAME), "weight_function")
    plain = run(cfg_guider(model, Case(NAME)), Case(NAME))
    styled, case = OURS[ours].live(model, style, neutral)
    positive, negative = (patched(style, neutral, s) for s in (OURS[ours].positive, OURS[ours].negative))
    truth = run(side_by_side(positive, negative, Case(NAME)), Case(NAME))
    close(run(cfg_guider(styled, case), case), truth, 1e-4)
    assert torch.equal(run(cfg_guider(model, Case(NAME)), Case(NAME)), plain)
    assert not any(getattr(module, "weight_function", None) for module in network(model).modules())


@pytest.mark.parametrize("ours", OURS)
def test_linears_that_never_run_are_refused(loras, ours: str):
    style, neutral = loras
    model = past_its_linears(build(NAME), "never")
    styled, case = OURS[ours].live(model, style, neutral)
    with pytest.raises(I2LError, match=r"attention\.qkv.* without running them .*mode merged"):
        run(cfg_guider(styled, case), case)
    assert not any(getattr(module, "weight_function", None) for module in network(model).modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network(model).modules())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("lumina2", "layers.0.adaLN_modulation"),
        ("lumina2", "x_embedder"),
        ("flux2", "double_blocks.0.img_mlp"),
        ("flux2", "img_in"),
        ("qwen_image", "transformer_blocks.1.img_mod"),
        ("qwen_image", "txt_in"),
    ],
)
def test_a_part_that_is_computed_at_once_is_refused(host, name: str, part: str):
    """A container and its Linears by one kernel, where only the block around them runs; and Linears of no block."""
    model = build(name)
    module = network(model).get_submodule(part)
    kind: Any = type(module)

    class Kernel(kind):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            for part in (self,) if isinstance(self, torch.nn.Linear) else self:
                linear = isinstance(part, torch.nn.Linear)
                x = torch.nn.functional.linear(x, part.weight, part.bias) if linear else part(x)
            return x

    module.__class__ = Kernel
    case = Case(name)
    run(cfg_guider(model, case), case)
    with pytest.raises(I2LError, match=rf"{re.escape(part)}.* without running them"):
        run(cfg_guider(live_on(model, lora_for(model, seed=1)), case), case)


def test_a_guest_that_a_node_forgets_troubles_one_sampling(loras):
    """A node begins a run and never ends it; then plain samplings of the same model."""
    style, _ = loras
    model, case = build(NAME), Case(NAME)
    plain = run(cfg_guider(model, case), case)
    live_on(model, style).pre_run()
    with pytest.raises(I2LError, match="a guider for two models"):
        run(cfg_guider(model, case), case)
    assert torch.equal(run(cfg_guider(model, case), case), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network(model).modules())


def test_a_prompt_that_a_node_writes_anew_stays_on_its_side(loras):
    """The positive prompt is encoded again at each step, under another uuid, beside the guider's negative one."""
    import comfy.sampler_helpers
    import comfy.samplers

    style, neutral = loras
    styled, case = asymmetric_cfg(build(NAME), style, neutral)
    positive = comfy.sampler_helpers.convert_cond(conditioning(NAME, 6))

    def rewritten(model: Any) -> Any:
        clone = model.clone()

        def calc(args: dict[str, Any]) -> Any:
            x, base = args["input"], args["model"]
            new = comfy.samplers.encode_model_conds(base.extra_conds, positive, x, x.device, "positive")
            conds = [new, args["conds"][1]]
            return comfy.samplers.calc_cond_batch(base, conds, x, args["sigma"], args["model_options"])

        clone.set_model_sampler_calc_cond_batch_function(calc)
        return clone

    anew = Case(NAME)
    anew.conds = lambda: (conditioning(NAME, 6), case.conds()[1])  # type: ignore[method-assign]
    truth = run(side_by_side(merged(NAME, style), merged(NAME, neutral), anew), anew)
    close(run(cfg_guider(rewritten(styled), case), case), truth, 1e-4)


def test_a_network_that_is_replaced_or_replayed_is_refused(loras):
    style, _ = loras

    def engine(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x

    with pytest.raises(I2LError, match="none of their layers runs"):
        run(cfg_guider(inside(live_on(build(NAME), style), engine), Case(NAME)), Case(NAME))


def test_recording_a_cuda_graph_is_refused(loras, monkeypatch: pytest.MonkeyPatch):
    from i2l.i2l_core.host.live import hooks

    style, _ = loras
    monkeypatch.setattr(hooks, "is_recorded", lambda out: True)
    with pytest.raises(I2LError, match="switch CUDA graphs off"):
        run(cfg_guider(live_on(build(NAME), style), Case(NAME)), Case(NAME))


# packed weights and renamed blocks


class Packed(torch.nn.Module):
    """Two whole numbers of 4 bits in a byte, with a scale for each row; computed by a kernel of its own."""

    def __init__(self, linear: Any, names: str) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        scale = linear.weight.abs().amax(1, keepdim=True) / 7
        numbers = (linear.weight / scale).round().to(torch.int8) + 8
        packed = (numbers[:, ::2] * 16 + numbers[:, 1::2]).to(torch.uint8)
        name = "weight" if names == "weight" else "qweight"
        self.register_parameter(name, torch.nn.Parameter(packed, requires_grad=False))
        self.register_buffer("wscales", scale.detach())
        self.bias = linear.bias
        self.name = name

    def unpacked(self) -> torch.Tensor:
        packed, scale = (self.get_parameter(self.name).to(torch.int16), self.get_buffer("wscales"))
        return (torch.stack([packed // 16, packed % 16], -1).flatten(1) - 8) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.unpacked(), self.bias)


def packed(model: Any, names: str) -> Any:
    for block in network(model).layers:
        block.attention.qkv = Packed(block.attention.qkv, names)
        block.feed_forward.w1 = Packed(block.feed_forward.w1, names)
    return model


@pytest.mark.parametrize("names", ["weight", "qweight"])
def test_packed_weights_take_live_loras_and_refuse_merged_ones(loras, names: str):
    from i2l.i2l_core.host.patch import apply_merged

    style, neutral = loras
    case = Case(NAME)
    model = packed(build(NAME), names)
    with pytest.raises(I2LError, match=r"packed weights, .*layers\.0\.attention\.qkv.*set mode to auto"):
        apply_merged(model, style, 1.0)

    def unpacked(lora: Any) -> Any:
        plain = build(NAME)
        for one, other in zip(network(plain).layers, network(model).layers, strict=True):
            for part in ("attention.qkv", "feed_forward.w1"):
                one.get_submodule(part).weight.data.copy_(other.get_submodule(part).unpacked())
        return apply_merged(plain, lora, 1.0)

    styled, _ = asymmetric_cfg(model, style, neutral)
    truth = run(side_by_side(unpacked(style), unpacked(neutral), case), case)
    close(run(cfg_guider(styled, case), case), truth, 1e-4)


def test_whole_numbers_of_the_right_shape_are_packed_weights_too(loras):
    from i2l.i2l_core.host.patch import apply_merged

    style, _ = loras
    model = build(NAME)
    for block in network(model).layers:
        weight = torch.zeros(block.attention.qkv.weight.shape, dtype=torch.int8)
        block.attention.qkv.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(I2LError, match="packed weights"):
        apply_merged(model, style, 1.0)


def test_mode_auto_is_live_where_weights_are_packed(loras):
    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    style, _ = loras
    case = Case(NAME)
    model = packed(build(NAME), "weight")
    chosen, applied = apply_lora_model(model, PredictedLoRA(style), 1.0)
    assert applied.mode == "live"
    close(run(cfg_guider(chosen, case), case), run(cfg_guider(live_on(model, style), case), case), 1e-6)


def test_packed_weights_of_unknown_size_are_named(loras):
    style, _ = loras
    model = packed(build(NAME), "weight")
    for module in network(model).modules():
        if isinstance(module, Packed):
            del module.out_features, module.in_features
    with pytest.raises(I2LError, match="packed weights"):
        live_on(model, style)


@pytest.mark.parametrize("mode", ["live", "merged"])
def test_a_lora_fits_blocks_that_are_compiled_now(loras, mode: str):
    """Compiled by the run before, which ComfyUI undoes when it loads the next one."""
    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    style, _ = loras
    case = Case(NAME)
    model = build(NAME)
    run(cfg_guider(compiled_blocks(model), case), case)
    assert any("_orig_mod" in name for name, _ in network(model).named_parameters())
    styled, applied = apply_lora_model(model, PredictedLoRA(style), 1.0, mode)
    assert applied.fit is not None
    assert not applied.fit.missing
    close(run(cfg_guider(styled, case), case), run(cfg_guider(merged(NAME, style), case), case), 1e-4)


# what is not in the weights


def test_a_model_with_live_loras_is_not_saved_or_merged(
    loras, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    import comfy_extras.nodes_model_merging as merging
    import folder_paths

    style, neutral = loras
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    styled, _ = asymmetric_cfg(build(NAME), style, neutral)
    later = own_attention(styled)  # a clone
    for model in (styled, later):
        with pytest.raises(I2LError, match="live LoRAs are not in the weights"):
            merging.ModelSave().save(model, "live")
        with pytest.raises(I2LError, match="live LoRAs are not in the weights"):
            merging.ModelMergeSimple().merge(build(NAME), model, 0.5)
    assert not list(tmp_path.rglob("*.safetensors"))
    merging.ModelSave().save(merged(NAME, style), "merged")
    assert list(tmp_path.rglob("*.safetensors"))


def test_a_model_with_live_loras_goes_when_nothing_holds_it(loras):
    """ComfyUI warns of a memory leak about models that only the garbage collector finds."""
    style, neutral = loras
    base, case = build(NAME), Case(NAME)
    styled, _ = asymmetric_cfg(base, style, neutral)
    found = weakref.ref(styled)
    gc.collect()
    gc.disable()
    try:
        run(cfg_guider(styled, case), case)
        del styled
        assert found() is None
    finally:
        gc.enable()


# two devices, two types


def test_gates_are_on_the_device_and_of_the_type_of_each_forward(host):
    from i2l.i2l_core.grouped_lora import stack
    from i2l.i2l_core.host.live.hooks import ActiveLoRAs, TokenMasks
    from i2l.i2l_core.host.live.image_tokens import ImageTokens

    lora = lora_for(build(NAME), seed=1)
    layer = next(
        layer for target, layer in lora.layers.items() if target.weight == "layers.0.feed_forward.w1"
    )
    x = torch.zeros(1, 16, 8, 8)
    tokens = ImageTokens.read(network(build(NAME)), x, {})
    masks = TokenMasks(tokens, {0: torch.rand(1, 8, 8)}, 1)
    products = stack([[(0, layer, 1.0)]], "cpu", torch.float32)
    assert products is not None
    active = ActiveLoRAs({}, slice(0, 1), 1, masks, {0: 0.5})
    for device in ("cpu", "meta"):
        for dtype in (torch.float32, torch.bfloat16):
            given = torch.zeros(1, 32, 256, device=device, dtype=dtype)
            gate = active.gate("layers.0.feed_forward.w1", given, products)
            assert gate is not None
            assert (gate.device, gate.dtype) == (given.device, given.dtype)


@pytest.mark.parametrize("ours", OURS)
def test_branches_split_over_devices_in_threads(loras, ours: str):
    """MultiGPU's split of CFG: each branch on a clone with weights of its own, in a thread of its own."""

    style, neutral = loras
    styled, case = OURS[ours].live(build(NAME), style, neutral)
    second = build(NAME)
    clone = styled.clone(model_override=(second.model, ({}, {}, {}, set())))
    clone.is_multigpu_base_clone = True

    expected = run(cfg_guider(styled, case), case)
    threads = Split(styled, clone)
    found = run(cfg_guider(threads.patcher(), case), case)
    close(found, expected, 1e-5)
    assert threads.used == {id(styled.model), id(second.model)}


class Split:
    """Runs the cond lists of a batch at once, each in a thread, on one of two patchers."""

    def __init__(self, one: Any, two: Any) -> None:
        self.patchers = one, two
        self.used: set[int] = set()

    def patcher(self) -> Any:
        import comfy.model_management

        comfy.model_management.load_models_gpu([self.patchers[1]])
        clone = self.patchers[0].clone()
        clone.set_model_sampler_calc_cond_batch_function(self.calc)
        return clone

    def calc(self, args: dict[str, Any]) -> list[torch.Tensor]:
        import threading

        import comfy.samplers

        models = [args["model"], self.patchers[1].model]
        models[1].current_patcher = self.patchers[1]
        out: list[Any] = [None, None]
        both, first_is_done = threading.Barrier(2), threading.Event()

        def work(i: int) -> None:
            def wrapper(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
                both.wait()  # both batches have begun; the first ends before the second runs
                if i == 1:
                    first_is_done.wait()
                return apply_model(given["input"], given["timestep"], **given["c"])

            with torch.inference_mode():
                conds: Any = [cond if i == k else None for k, cond in enumerate(args["conds"])]
                options = {**args["model_options"], "model_function_wrapper": wrapper}
                given = args["input"], args["sigma"], options
                out[i] = comfy.samplers.calc_cond_batch(models[i], conds, *given)[i]
            if i == 0:
                first_is_done.set()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.used |= {id(model) for model in models}
        return out
