"""Several LoRAs as one, and sequences of LoRAs that lead from one style to another."""

from __future__ import annotations

from typing import Any

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
            description="Mixes styles: several LoRAs, each with its weight, become one. Or morphs one style into "
            "another, as a list of LoRAs.",
            search_aliases=[
                "merge lora",
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
                    tooltip="How many LoRAs to fuse. Set it first: another number puts all weights back to 1.",
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=_methods(),
                    tooltip="concat: the exact sum, ranks add up. svd: the sum at a lower rank. spectral: only the "
                    "main directions of each style. interpolate: a style between two. morph: a list of styles "
                    "from one to another.",
                ),
            ],
            outputs=[
                LoraModel.Output(
                    "lora",
                    is_output_list=True,
                    tooltip="The fused LoRA, for Apply Predicted LoRA or Save Predicted LoRA. From morph a list: "
                    "what follows runs once for each.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, loras: dict[str, Any] | None = None, method: dict[str, Any] | None = None, **unknown: Any
    ) -> io.NodeOutput:
        if loras is None or method is None:
            raise I2LError(
                f'in a prompt over the API loras is a text, "2" to "{MAX_LORAS}", and method the name of one, such as '
                "concat; what they bring has keys of its own: loras.lora_1, loras.weight_1, method.rank"
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


def _loras(count: int) -> io.DynamicCombo.Option:
    """`count` sockets, each with its weight."""
    inputs: list[io.Input] = []
    for number in range(1, count + 1):
        socket = LoraModel.Input(
            f"lora_{number}",
            optional=True,
            tooltip="From Images to LoRA or another fusion. All for one base model; an empty socket is left out.",
        )
        weight = strength_input(
            f"weight_{number}",
            "How much of this LoRA goes in. 1: as it is, 0: left out, below 0: away from its style.",
        )
        inputs += [socket, weight]
    return io.DynamicCombo.Option(str(count), inputs)


def _methods() -> list[io.DynamicCombo.Option]:
    rank = io.Int.Input(
        "rank", default=0, min=0, max=4096, tooltip="The highest rank that a layer may have. 0: no limit."
    )
    energy = io.Float.Input(
        "energy",
        default=0.99,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="The share of the style to keep: every layer gets the lowest rank that does. 1: all of it.",
    )
    alpha = io.Float.Input(
        "alpha",
        default=1.0,
        min=0.0,
        max=20.0,
        step=0.05,
        tooltip="How fast the finer directions of each style fade. 0: nothing fades, 5: only the main one is left.",
    )
    t = io.Float.Input(
        "t", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="0: the first style, 1: the second."
    )
    frames = io.Int.Input(
        "frames",
        default=5,
        min=2,
        max=MAX_FRAMES,
        tooltip="How many LoRAs from the first style to the second, both included. Each takes memory of its own.",
    )
    option = io.DynamicCombo.Option
    return [
        option(CONCAT, []),
        option(SVD, [rank, energy]),
        option(SPECTRAL, [alpha]),
        option(INTERPOLATE, [t, rank]),
        option(MORPH, [frames, rank]),
    ]
