"""Mix several LoRAs into one, or make a list of LoRAs that morphs one style into another."""

from __future__ import annotations

from typing import Any, TypeGuard

from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..i2l_core.errors import I2LError
from ..i2l_core.host.fuse import CONCAT, INTERPOLATE, MORPH, SPECTRAL, SVD, fuse_lora_models
from .report import NodeReport
from .sockets import CATEGORY, LoraModel, check_keys, strength_input

MAX_LORAS = 10  # of one node; a fusion can be fused again
MAX_FRAMES = 256


class FuseLoRAs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FuseLoRAs",
            display_name="Fuse LoRAs",
            category=CATEGORY,
            description="Mixes several LoRAs, each with a weight, into one LoRA. Or morphs one style into "
            "another, as a list of LoRAs.",
            search_aliases=[
                "merge lora",
                "mix lora",
                "混合",
                "mix styles",
                "blend styles",
                "lora fusion",
                "morph",
                "interpolate lora",
                "compress lora",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.DynamicCombo.Input(
                    "loras",
                    options=[_loras(count) for count in range(2, MAX_LORAS + 1)],
                    tooltip="How many LoRAs to fuse. Set this first: changing it resets all weights to 1.",
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=_methods(),
                    tooltip="concat: the exact sum; the ranks add up. svd: the sum at a lower rank. "
                    "spectral: the sum of the main directions of each LoRA. interpolate: one "
                    "style between two (slerp). morph: a list of styles from the first to the "
                    "second.",
                ),
            ],
            outputs=[
                LoraModel.Output(
                    "lora",
                    is_output_list=True,
                    tooltip="The fused LoRA, for Apply Predicted LoRA or Save Predicted LoRA. morph "
                    "outputs a list: the nodes after it run once per LoRA.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, loras: dict[str, Any] | None = None, method: dict[str, Any] | None = None, **unknown: Any
    ) -> io.NodeOutput:
        if not _is_chosen(loras, "loras") or not _is_chosen(method, "method"):
            raise I2LError(
                "loras and method take no cable, LoRAs go to lora_1, lora_2 and so on; "
                f'in an API prompt loras must be a string, "2" to "{MAX_LORAS}", and method a name such as "concat"; '
                "their inputs have their own keys: loras.lora_1, loras.weight_1, method.rank"
            )
        check_keys(unknown, "loras.lora_1, loras.weight_1, method.rank")
        settings = {name: value for name, value in method.items() if name != "method"}
        numbers = [n for n in range(1, MAX_LORAS + 1) if loras.get(f"lora_{n}") is not None]
        bar = ProgressBar(settings.get("frames", 1))
        fused, text = fuse_lora_models(
            [loras[f"lora_{n}"] for n in numbers],
            [loras[f"weight_{n}"] for n in numbers],
            method["method"],
            **settings,
            progress=bar.update_absolute,
        )
        return io.NodeOutput(fused, ui=NodeReport(text))


def _is_chosen(value: Any, name: str) -> TypeGuard[dict[str, Any]]:
    """Whether it is what a dynamic combo of that name brings, with the choice itself."""
    return isinstance(value, dict) and isinstance(value.get(name), str)


def _loras(count: int) -> io.DynamicCombo.Option:
    """`count` sockets, each with its weight."""
    inputs: list[io.Input] = []
    for number in range(1, count + 1):
        socket = LoraModel.Input(
            f"lora_{number}",
            optional=True,
            tooltip="A LoRA from Images to LoRA, Load LoRA File or another fusion. All must be for the "
            "same base model. Empty sockets are ignored.",
        )
        weight = strength_input(
            f"weight_{number}",
            "Weight of this LoRA in the mix. 1: full strength, 0: left out, below 0: away from its style.",
        )
        inputs += [socket, weight]
    return io.DynamicCombo.Option(str(count), inputs)


def _methods() -> list[io.DynamicCombo.Option]:
    rank = io.Int.Input(
        "rank", default=0, min=0, max=4096, tooltip="The highest rank a layer may have. 0: no limit."
    )
    energy = io.Float.Input(
        "energy",
        default=0.99,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="Fraction of each layer's energy to keep. Every layer gets the lowest rank that keeps "
        "it. 1: everything.",
    )
    alpha = io.Float.Input(
        "alpha",
        default=1.0,
        min=0.0,
        max=20.0,
        step=0.05,
        tooltip="How much the weaker directions of each style are reduced. 0: not at all, 5: only the "
        "main direction of each layer remains.",
    )
    t = io.Float.Input(
        "t",
        default=0.5,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Position between the two styles. 0: the first, 1: the second.",
    )
    frames = io.Int.Input(
        "frames",
        default=5,
        min=2,
        max=MAX_FRAMES,
        tooltip="How many LoRAs from the first style to the second, both included. Each needs memory of "
        "its own.",
    )
    option = io.DynamicCombo.Option
    return [
        option(CONCAT, []),
        option(SVD, [rank, energy]),
        option(SPECTRAL, [alpha]),
        option(INTERPOLATE, [t, rank]),
        option(MORPH, [frames, rank]),
    ]
