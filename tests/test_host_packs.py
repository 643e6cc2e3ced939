"""Live LoRAs beside other packs: each either draws what separately patched models draw beside it, or is refused.

Nothing here is another pack's code. Each function does to a MODEL what packs of its kind do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


def network(model: Any) -> torch.nn.Module:
    return model.model.diffusion_model
