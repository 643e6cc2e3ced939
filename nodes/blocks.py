"""Block weights: choose where in the network a LoRA acts."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.lora_model import PredictedLoRA, lora_of
from ..i2l_core.mixing.block_weights import (
    ALL,
    EVERYWHERE,
    PRESETS,
    PROJECTIONS,
    BlockWeights,
    apply_block_weights,
)
from ..i2l_core.schedule import Curve
from .report import NodeReport
from .sockets import CATEGORY, LoraModel, strength_input

CUSTOM = "custom"


class LoRABlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRABlocks",
            display_name="LoRA Blocks",
            category=CATEGORY,
            description="Sets block weights: limits a LoRA to a part of the network, or makes it stronger "
            "in one part than in another. The result is a LoRA that you can apply, fuse or "
            "save.",
            search_aliases=[
                "block weight",
                "lora block weight",
                "style without composition",
                "layer strength",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                LoraModel.Input(
                    "lora", tooltip="The LoRA to change, from Images to LoRA, Fuse LoRAs or Load LoRA File."
                ),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=EVERYWHERE,
                    tooltip="The part of the network where the LoRA acts. custom uses the strengths "
                    "below; presets ignore them. Measured effects: docs/where.md.",
                ),
                *(
                    strength_input(name, f"custom: strength of {what}.")
                    for name, what in (
                        ("attention", "the attention layers"),
                        ("mlp", "the MLP layers"),
                        ("other", "the modulation layers and the layers before and after the blocks"),
                        (
                            "image",
                            "layers that process only the picture; multiplied with attention, mlp or other",
                        ),
                        (
                            "text",
                            "layers that process only the prompt; multiplied with attention, mlp or other",
                        ),
                    )
                ),
                io.String.Input(
                    "depth",
                    default="",
                    placeholder="0: 1, 0.5: 0.3, 1: 0",
                    tooltip="custom: strength by depth as keyframes position: factor, such as 0: 1, "
                    "0.5: 0.3, 1: 0 (0 = first block, 1 = last), linear in between. Empty: the "
                    "same in all blocks.",
                ),
                io.Combo.Input(
                    "projections",
                    options=[*PROJECTIONS],
                    default=ALL,
                    optional=True,
                    tooltip="The parts of attention that the LoRA changes, with every preset. q and k decide "
                    "where the model looks: without them more of its own composition stays, and less of the "
                    "style comes. v and out are what it takes from there.",
                ),
            ],
            outputs=[LoraModel.Output("lora", tooltip="The LoRA with these block weights.")],
        )

    @classmethod
    def execute(
        cls,
        lora: dict[str, Tensor],
        preset: str,
        attention: float,
        mlp: float,
        other: float,
        image: float,
        text: float,
        depth: str,
        projections: str = ALL,
    ) -> io.NodeOutput:
        where = (
            BlockWeights(attention, mlp, other, image, text, Curve.parse(depth))
            if preset == CUSTOM
            else PRESETS[preset]
        )
        value = lora_of(lora)
        changed = apply_block_weights(value, replace(where, **PROJECTIONS[projections]))
        shown = f"acts in {changed.n_layers} of {value.n_layers} layers"
        if projections != ALL:
            shown += f", {projections}"
        return io.NodeOutput(PredictedLoRA(changed), ui=NodeReport(shown))
