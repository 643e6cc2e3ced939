"""Save what a template made as a file that Load Template reads: a cache for both sides of CFG."""

from __future__ import annotations

from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..i2l_core.host.templates.base import Template as LoadedTemplate
from ..i2l_core.host.templates.base import TemplateInputs as GivenInputs
from ..i2l_core.host.templates.saved import save_template_cache
from .report import NodeReport
from .sockets import TEMPLATES, template_inputs_input


class SaveTemplateCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveTemplateCache",
            display_name="Save Template Cache",
            category=TEMPLATES,
            description="Saves what a template made of its inputs to models/i2l, for Load Template: the picture or "
            "the value is then part of the file, and the template is not needed any more. Never "
            "overwrites a file: if the name is taken, a number is added.",
            search_aliases=["save kv cache", "export template", "keep template", "i2l"],
            is_output_node=True,
            inputs=[
                template_inputs_input(),
                io.String.Input(
                    "filename",
                    default="caches/template",
                    tooltip="File name without .safetensors. A / makes a subfolder of models/i2l. Files are large: "
                    "157 MB for each side of a value, 1.4 GB for a picture of 1024 x 1024.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "template_name", tooltip="The name of the saved file, as Load Template lists it."
                )
            ],
        )

    @classmethod
    def execute(cls, inputs: GivenInputs | LoadedTemplate, filename: str) -> io.NodeOutput:
        bar = ProgressBar(3)
        saved = save_template_cache(inputs, filename, bar.update_absolute)
        return io.NodeOutput(saved.name, ui=NodeReport(str(saved)))
