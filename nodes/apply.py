"""Style a model with a LoRA that was just predicted."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.apply import LIVE, MERGED, apply_lora_model
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
            description="Styles a model with a LoRA from Images to LoRA, without a file in between. Sampling "
            "is as fast as without it. A LoRA that does not fit the model whole is an error.",
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
                    "model", tooltip="The model to style: the base model that the predictor is for."
                ),
                LoraModel.Input(
                    "lora", tooltip="From Images to LoRA, or a LoRA of ComfyUI's own Train LoRA node."
                ),
                strength_input(
                    "strength",
                    "How strong the style is. 1 is as predicted, 0.5 half of it, 0 none; above 1.5 "
                    "pictures may break, below 0 they move away from the style.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[MERGED, LIVE],
                    default=MERGED,
                    optional=True,
                    tooltip="merged: into the weights, free per step. live: beside the weights, a few percent "
                    "slower; for start, end, curve and mask, and for models whose weights cannot be patched.",
                ),
                start_percent_input(),
                end_percent_input(),
                io.Combo.Input(
                    "missing_layers",
                    options=[ERROR, SKIP],
                    default=ERROR,
                    optional=True,
                    advanced=True,
                    tooltip="What to do when the model lacks some of the LoRA's layers: stop with an error that "
                    "names them, or apply the rest and say how many were skipped.",
                ),
                curve_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Live mode only. Where in the picture the style acts: white fully, black not at all.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The styled model, for a KSampler. The model that came in stays as it is.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        lora: dict[str, Tensor],
        strength: float,
        mode: str = MERGED,
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
