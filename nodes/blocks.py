"""Choose where in the network a LoRA acts."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.lora_model import PredictedLoRA, lora_of
from ..i2l_core.mixing.block_weights import EVERYWHERE, PRESETS, BlockWeights, apply_block_weights
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
            description="Makes a LoRA act only in a part of the network, or stronger in one part than in another. "
            "The result is a LoRA: apply it, mix it, save it.",
            search_aliases=[
                "block weight",
                "lora block weight",
                "style without composition",
                "layer strength",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                LoraModel.Input("lora", tooltip="From Images to LoRA, Fuse LoRAs or Load LoRA File."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=EVERYWHERE,
                    tooltip="Where it acts. What each does is measured in docs/where.md. custom: as the strengths "
                    "below say; they do nothing otherwise.",
                ),
                *(
                    strength_input(name, f"custom: strength in {what}.")
                    for name, what in (
                        ("attention", "attention layers"),
                        ("mlp", "MLP layers"),
                        ("other", "modulation, and what is before and after the blocks"),
                        ("image", "layers that see only the picture, times that of their kind"),
                        ("text", "layers that see only the prompt, times that of their kind"),
                    )
                ),
                io.String.Input(
                    "depth",
                    default="",
                    placeholder="0: 1, 0.5: 0.3, 1: 0",
                    tooltip="custom: how the strength changes from the first block (0) to the last (1), as places "
                    "and factors, with straight lines between. Empty: it does not.",
                ),
            ],
            outputs=[LoraModel.Output("lora", tooltip="The LoRA that acts there.")],
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
    ) -> io.NodeOutput:
        where = (
            BlockWeights(attention, mlp, other, image, text, Curve.parse(depth))
            if preset == CUSTOM
            else PRESETS[preset]
        )
        value = lora_of(lora)
        changed = apply_block_weights(value, where)
        shown = f"acts in {changed.n_layers} of {value.n_layers} layers"
        return io.NodeOutput(PredictedLoRA(changed), ui=NodeReport(shown))
