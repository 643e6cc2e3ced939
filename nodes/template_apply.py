"""Apply a template to both prompts, or take the LoRA that it gives."""

from __future__ import annotations

from typing import Any

from comfy.utils import ProgressBar
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..i2l_core.host.lora_model import PredictedLoRA
from ..i2l_core.host.templates.apply import apply_template, loras_of
from ..i2l_core.host.templates.base import Template as LoadedTemplate
from ..i2l_core.host.templates.base import TemplateInputs as GivenInputs
from .report import NodeReport
from .sockets import TEMPLATES, LoraModel, template_inputs_input

NO_NEUTRAL = (
    "this template gives a LoRA for the positive side only; leave neutral of Asymmetric CFG unconnected"
)


class ApplyTemplate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyTemplate",
            display_name="Apply Template",
            category=TEMPLATES,
            description="Adds a template to both prompts, for any sampler and guider. Chain one node per template. The "
            "same template twice counts twice. A template has no strength. For FLUX.2 klein 4B.",
            search_aliases=[
                "diffusion template",
                "structure control",
                "brightness",
                "kv cache",
                "apply control",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Conditioning.Input("positive", tooltip="The positive prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                template_inputs_input(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent to sample. The node passes it on; a template that inpaints replaces it by the "
                    "picture with its mask.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The positive prompt with the template."),
                io.Conditioning.Output(
                    "negative", tooltip="The negative prompt with the neutral side of the template."
                ),
                io.Latent.Output(
                    "latent",
                    tooltip="The latent for the sampler: the picture with its mask if the template inpaints, else "
                    "the latent that came in.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, positive: list, negative: list, inputs: GivenInputs | LoadedTemplate, latent: Any = None
    ) -> io.NodeOutput:
        bar = ProgressBar(2)
        applied = apply_template(positive, negative, inputs, latent, bar.update_absolute)
        return io.NodeOutput(
            applied.positive, applied.negative, applied.latent, ui=NodeReport(applied.report)
        )


class TemplateToLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemplateToLoRA",
            display_name="Template to LoRA",
            category=TEMPLATES,
            description="Runs a template that gives a LoRA, such as Aesthetic or ContentRef, on inputs that Images to "
            "LoRA does not have.",
            search_aliases=["template lora", "aesthetic", "content reference", "i2l"],
            has_intermediate_output=True,
            inputs=[template_inputs_input()],
            outputs=[
                LoraModel.Output("lora", tooltip="The LoRA, for Apply Predicted LoRA or Asymmetric CFG."),
                LoraModel.Output(
                    "neutral",
                    tooltip="The LoRA of the negative side, for the neutral input of Asymmetric CFG.",
                ),
            ],
        )

    @classmethod
    def execute(cls, inputs: GivenInputs | LoadedTemplate) -> io.NodeOutput:
        bar = ProgressBar(2)
        lora, neutral, report = loras_of(inputs, bar.update_absolute)
        other = ExecutionBlocker(NO_NEUTRAL) if neutral is None else PredictedLoRA(neutral, neutral=True)
        return io.NodeOutput(PredictedLoRA(lora), other, ui=NodeReport(report))
