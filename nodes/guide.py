"""Asymmetric guidance: the style on the positive side of CFG, what has no style on the negative side."""

from __future__ import annotations

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.cards import guidance_card
from ..i2l_core.host.guidance import asymmetric, describe
from ..i2l_core.schedule import Schedule
from .report import NodeReport
from .sockets import CATEGORY, LoraModel, curve_input, end_percent_input, start_percent_input, strength_input

_STYLE_TOOLTIP = "The style, from Images to LoRA. It acts on the positive prompt only."
_NEUTRAL_TOOLTIP = (
    "The second output of Images to LoRA: what the predictor makes of plain gray pictures. It acts on the "
    "negative prompt only. Without it the negative side is the model as it is."
)
_CFG_1 = "At cfg 1 (distilled and turbo models) there is no negative side: only the style acts."
_SEARCH = ["asymmetric", "asymmetric guidance", "style cfg", "negative lora", "lora per branch", "i2l"]


class AsymmetricCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsymmetricCFG",
            display_name="Asymmetric CFG (i2L)",
            category=CATEGORY,
            description="Styles the positive side of CFG with one LoRA and the negative side with another, for "
            f"any KSampler and at the speed of plain CFG. Stronger styles at the same strength. {_CFG_1}",
            search_aliases=_SEARCH,
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to style: the base model that the predictor is for."
                ),
                LoraModel.Input("style", tooltip=_STYLE_TOOLTIP),
                LoraModel.Input("neutral", optional=True, tooltip=_NEUTRAL_TOOLTIP),
                strength_input(
                    "strength", "How strong the style is on the positive side. 1 is as predicted."
                ),
                strength_input("neutral_strength", "How strong the neutral LoRA is on the negative side."),
                start_percent_input(),
                end_percent_input(),
                curve_input(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For a KSampler. The model that came in stays as it is."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        style: dict[str, Tensor],
        strength: float,
        neutral_strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        curve: str = "",
        neutral: dict[str, Tensor] | None = None,
    ) -> io.NodeOutput:
        schedule = Schedule.parse(start_percent, end_percent, curve)
        styled = asymmetric(model, style, neutral, strength, neutral_strength, schedule)
        return io.NodeOutput(styled, ui=NodeReport(describe(styled), guidance_card(styled)))


class AsymmetricGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsymmetricGuider",
            display_name="Asymmetric Guider (i2L)",
            category=CATEGORY,
            description="A guider for SamplerCustomAdvanced: CFG with one LoRA on the positive side and another "
            f"on the negative side, at the speed of plain CFG. {_CFG_1}",
            search_aliases=[*_SEARCH, "guider"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to style: the base model that the predictor is for."
                ),
                io.Conditioning.Input("positive", tooltip="What to paint. The style acts here."),
                io.Conditioning.Input("negative", tooltip="What to avoid. The neutral LoRA acts here."),
                LoraModel.Input("style", tooltip=_STYLE_TOOLTIP),
                LoraModel.Input("neutral", optional=True, tooltip=_NEUTRAL_TOOLTIP),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip=f"How far to move from the negative to the positive side. {_CFG_1}",
                ),
                strength_input(
                    "strength", "How strong the style is on the positive side. 1 is as predicted."
                ),
                strength_input("neutral_strength", "How strong the neutral LoRA is on the negative side."),
                start_percent_input(),
                end_percent_input(),
                curve_input(),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        style: dict[str, Tensor],
        cfg: float,
        strength: float,
        neutral_strength: float,
        neutral: dict[str, Tensor] | None = None,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        curve: str = "",
    ) -> io.NodeOutput:
        schedule = Schedule.parse(start_percent, end_percent, curve)
        styled = asymmetric(model, style, neutral, strength, neutral_strength, schedule)
        guider = comfy.samplers.CFGGuider(styled)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider, ui=NodeReport(describe(styled, cfg), guidance_card(styled, cfg)))
