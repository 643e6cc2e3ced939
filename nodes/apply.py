"""Apply a predicted LoRA to a model."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.apply import AUTO, LIVE, MERGED, apply_lora_model
from ..i2l_core.host.cards import applied_card
from ..i2l_core.schedule import Schedule
from .report import NodeReport
from .sockets import CATEGORY, LoraModel, curve_input, end_percent_input, start_percent_input, strength_input

ERROR, SKIP = "error", "skip"


class ApplyPredictedLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyPredictedLoRA",
            display_name="Apply Predicted LoRA",
            category=CATEGORY,
            description="Applies a LoRA from Images to LoRA to a model, without saving it to a file first. "
            "A constant strength costs nothing per step. Stops with an error if the LoRA "
            "does not fit the model.",
            search_aliases=[
                "apply style",
                "style strength",
                "style transfer",
                "style lora",
                "ip adapter",
                "load lora model",
                "use lora",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to style. It must be the base model that the predictor was made for.",
                ),
                LoraModel.Input(
                    "lora",
                    tooltip="The LoRA to apply, from Images to LoRA or from ComfyUI's own Train LoRA node.",
                ),
                strength_input(
                    "strength",
                    "Strength of the style. 1: as predicted, 0.5: half, 0: off. Above 1.5 "
                    "pictures may break, below 0 they move away from the style.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[AUTO, MERGED, LIVE],
                    default=AUTO,
                    optional=True,
                    tooltip="auto: merged, or live where something needs it. merged: patches the weights, no cost "
                    "per step. live: adds the LoRA during sampling, a few percent slower; needed for start_percent, "
                    "end_percent, curve and mask, and for models whose weights cannot be patched.",
                ),
                start_percent_input(),
                end_percent_input(),
                io.Combo.Input(
                    "missing_layers",
                    options=[ERROR, SKIP],
                    default=ERROR,
                    optional=True,
                    advanced=True,
                    tooltip="What to do if the model lacks some of the LoRA's layers. error: stop and "
                    "list them. skip: apply the others and report how many were skipped.",
                ),
                curve_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the picture the LoRA acts: white fully, black not at all.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The styled model, for a KSampler. The input model does not change.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        lora: dict[str, Tensor],
        strength: float,
        mode: str = AUTO,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        missing_layers: str = ERROR,
        curve: str = "",
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        patched, applied = apply_lora_model(
            model,
            lora,
            strength,
            mode,
            Schedule.parse(start_percent, end_percent, curve),
            mask,
            partial=missing_layers == SKIP,
        )
        return io.NodeOutput(patched, ui=NodeReport(str(applied), applied_card(applied)))
