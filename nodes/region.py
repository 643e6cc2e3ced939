"""A style in a part of the picture."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.regions import add_region
from ..i2l_core.schedule import Schedule
from .report import NodeReport
from .sockets import CATEGORY, LoraModel, curve_input, end_percent_input, start_percent_input, strength_input


class StyleRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StyleRegion",
            display_name="Style Region",
            category=CATEGORY,
            description="A style in one part of the picture, and another prompt there if you like. One node per "
            "region, in a chain: model to model, positive to positive. Each region makes a step as much slower as "
            "one more prompt does.",
            search_aliases=[
                "regional style",
                "regional lora",
                "lora mask",
                "masked style",
                "style area",
                "regional prompt",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, or the model of the region before."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What to paint in the whole picture, or the positive output of the region before.",
                ),
                LoraModel.Input(
                    "lora", tooltip="The style of the region, from Images to LoRA or Load LoRA File."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="The region: white fully, black not at all, gray in between. A later region lies on top "
                    "of an earlier one. Soft edges (Feather Mask) blend better.",
                ),
                strength_input("strength", "How strong the style is in the region. 1 is as predicted."),
                start_percent_input(),
                end_percent_input(),
                curve_input(),
                io.Conditioning.Input(
                    "prompt",
                    optional=True,
                    tooltip="What to paint in the region. Without it what positive asks for in the whole picture.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For the next region or a KSampler."),
                io.Conditioning.Output(
                    "positive", tooltip="For the next region or a KSampler, together with this model."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        lora: dict[str, Tensor],
        mask: Tensor,
        strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        curve: str = "",
        prompt: list | None = None,
    ) -> io.NodeOutput:
        schedule = Schedule.parse(start_percent, end_percent, curve)
        styled, regions = add_region(model, positive, lora, mask, strength, schedule, prompt)
        text = f"{float(mask.clamp(0, 1).mean()):.0%} of the picture; {len(regions)} positive predictions per step"
        return io.NodeOutput(styled, regions, ui=NodeReport(text))
