"""Asymmetric guidance: the style LoRA on the positive side of CFG, the neutral LoRA on the negative side."""

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

_STYLE_TOOLTIP = "The style LoRA, from Images to LoRA. It acts only on the positive prompt."
_NEUTRAL_TOOLTIP = (
    "The neutral LoRA, predicted from plain gray pictures: the second output of Images to LoRA. It acts only on "
    "the negative prompt. Unconnected: the negative prompt uses the plain model."
)
_CFG_1 = "At cfg 1 (distilled and turbo models) there is no negative side: only the style LoRA acts."
_SEARCH = ["asymmetric", "asymmetric guidance", "style cfg", "negative lora", "lora per branch", "i2l"]


class AsymmetricCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsymmetricCFG",
            display_name="Asymmetric CFG (i2L)",
            category=CATEGORY,
            description="Applies the style LoRA to the positive side of CFG and the neutral LoRA to the negative side. "
            f"Works with any KSampler, as fast as plain CFG; styles come out stronger at the same strength. {_CFG_1}",
            search_aliases=_SEARCH,
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to style. It must be the base model that the predictor was made for.",
                ),
                LoraModel.Input("style", tooltip=_STYLE_TOOLTIP),
                LoraModel.Input("neutral", optional=True, tooltip=_NEUTRAL_TOOLTIP),
                strength_input(
                    "strength", "Strength of the style LoRA on the positive side. 1: as predicted."
                ),
                strength_input("neutral_strength", "Strength of the neutral LoRA on the negative side."),
                start_percent_input(),
                end_percent_input(),
                curve_input(),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="The styled model, for a KSampler. The input model does not change."
                ),
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
        return io.NodeOutput(styled, ui=NodeReport(describe(styled), guidance_card(styled, style)))


class AsymmetricGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsymmetricGuider",
            display_name="Asymmetric Guider (i2L)",
            category=CATEGORY,
            description="Guider for SamplerCustomAdvanced: CFG with the style LoRA on the positive side and the "
            f"neutral LoRA on the negative side, as fast as plain CFG. {_CFG_1}",
            search_aliases=[*_SEARCH, "guider"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to style. It must be the base model that the predictor was made for.",
                ),
                io.Conditioning.Input("positive", tooltip="What to draw. The style LoRA acts here."),
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
                    tooltip="CFG scale: how far each step moves from the negative prompt towards the positive one. "
                    f"{_CFG_1}",
                ),
                strength_input(
                    "strength", "Strength of the style LoRA on the positive side. 1: as predicted."
                ),
                strength_input("neutral_strength", "Strength of the neutral LoRA on the negative side."),
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
        return io.NodeOutput(guider, ui=NodeReport(describe(styled, cfg), guidance_card(styled, style, cfg)))
