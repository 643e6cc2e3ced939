"""Load a Diffusion Template: a control for FLUX.2 klein, such as structure, brightness or inpainting."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.errors import I2LError
from ..i2l_core.files.fingerprint import fingerprint
from ..i2l_core.host.folders import predictor_names, predictor_path
from ..i2l_core.host.templates.load import load_template
from .report import NodeReport
from .sockets import TEMPLATES, Template

NO_FILES = "put a template into models/i2l"


class LoadTemplate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadTemplate",
            display_name="Load Template",
            category=TEMPLATES,
            description="Loads a Diffusion Template: a control for FLUX.2 klein 4B, such as structure from a picture, "
            "brightness or inpainting. It works beside a style LoRA. Or a cache from Save Template "
            "Cache.",
            search_aliases=[
                "diffusion template",
                "structure control",
                "brightness",
                "controlnet flux2",
                "klein control",
                "kv cache",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input(
                    "template_name",
                    display_name="template",
                    options=predictor_names() or [NO_FILES],
                    tooltip="A folder in models/i2l with a template, or a file: its weights alone, or a saved cache. "
                    "Press R to refresh the list.",
                ),
                io.Boolean.Input(
                    "allow_code",
                    default=False,
                    optional=True,
                    tooltip="Most templates need no program. On: a template that does may run it, and it can do "
                    "anything that ComfyUI can do on this computer. The server must allow it too: see the "
                    "help of this node.",
                ),
            ],
            outputs=[
                Template.Output(
                    "template",
                    tooltip="The template, for the node that gives its inputs; or for Apply Template, if it takes "
                    "none.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, template_name: str) -> bool | str:
        try:
            predictor_path(template_name)
        except I2LError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, template_name: str, allow_code: bool = False) -> str:
        return fingerprint(predictor_path(template_name))

    @classmethod
    def execute(cls, template_name: str, allow_code: bool = False) -> io.NodeOutput:
        template = load_template(predictor_path(template_name), allow_code)
        return io.NodeOutput(template, ui=NodeReport(template.describe()))
