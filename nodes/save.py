"""Keep a predicted LoRA as a file."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..i2l_core.host.save import save_lora_model
from .sockets import CATEGORY, LoraModel


class SavePredictedLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SavePredictedLoRA",
            display_name="Save Predicted LoRA",
            category=CATEGORY,
            description="Saves a LoRA into models/loras, where every LoRA loader finds it. Nothing is "
            "overwritten: a name that exists gets a number.",
            search_aliases=["save lora", "export lora", "export style", "keep style", "i2l"],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="The LoRA to save, from Images to LoRA."),
                io.String.Input(
                    "filename",
                    default="i2l/style",
                    tooltip="Name of the file, without .safetensors. A / makes a subfolder of models/loras.",
                ),
                io.String.Input(
                    "notes",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Free text kept in the file, such as the style's name. LoRA managers show it.",
                ),
            ],
            outputs=[
                io.String.Output("lora_name", tooltip="The name it got, as LoRA loaders list it."),
            ],
        )

    @classmethod
    def execute(cls, lora: dict[str, Tensor], filename: str, notes: str = "") -> io.NodeOutput:
        name = save_lora_model(lora, filename, notes)
        return io.NodeOutput(name, ui=ui.PreviewText(f"saved as {name}"))
