"""Style one part of the picture."""

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
            description="Applies a style LoRA, and optionally another prompt, to one part of the picture. "
            "Chain one node per region: model to model, positive to positive. Each region slows "
            "a step down as much as one more prompt.",
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
                io.Model.Input(
                    "model", tooltip="The base model, or the model output of the previous Style Region."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt of the whole picture, or the positive output of the previous "
                    "Style Region.",
                ),
                LoraModel.Input(
                    "lora", tooltip="The style LoRA of the region, from Images to LoRA or Load LoRA File."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="The region: white inside, black outside, gray in between. A later region "
                    "covers earlier ones. Soft edges (Feather Mask) blend better.",
                ),
                strength_input("strength", "Strength of the style in the region. 1: as predicted."),
                start_percent_input(),
                end_percent_input(),
                curve_input(),
                io.Conditioning.Input(
                    "prompt",
                    optional=True,
                    tooltip="The prompt of the region. Unconnected: the region uses the prompt of the "
                    "whole picture.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The model with all regions so far, for the next Style Region or a KSampler.",
                ),
                io.Conditioning.Output(
                    "positive",
                    tooltip="The prompts of all regions so far, for the next Style Region or a "
                    "KSampler. Use it with this model output.",
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
        part = float(mask.float().clamp(0, 1).mean())
        text = f"{part:.0%} of the picture; {len(regions)} positive predictions per step"
        return io.NodeOutput(styled, regions, ui=NodeReport(text))
