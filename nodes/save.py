"""Keep a predicted LoRA as a file."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.host.save import AS_IT_IS, PRECISIONS, save_lora_model
from ..i2l_core.lora_files.keys import KEY_FORMATS, KeyFormat
from .report import NodeReport
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
                io.Combo.Input(
                    "layout",
                    options=list(KEY_FORMATS),
                    default="ComfyUI",
                    optional=True,
                    tooltip="For whom the file is. ComfyUI: every LoRA loader of ComfyUI reads it. diffusers: for "
                    "diffusers and PEFT. DiffSynth: for DiffSynth-Studio. All say the same, exactly.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=AS_IT_IS,
                    optional=True,
                    tooltip="Numbers in the file. as it is: exactly the LoRA. bfloat16 and float16 halve the size "
                    "of a float32 one.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture or a batch kept in the file as its thumbnail: the references, or a result. "
                    "LoRA managers show it.",
                ),
            ],
            outputs=[
                io.String.Output("lora_name", tooltip="The name it got, as LoRA loaders list it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        lora: dict[str, Tensor],
        filename: str,
        notes: str = "",
        layout: KeyFormat = "ComfyUI",
        precision: str = AS_IT_IS,
        preview: Tensor | None = None,
    ) -> io.NodeOutput:
        name = save_lora_model(lora, filename, notes, layout, precision, preview)
        return io.NodeOutput(name, ui=NodeReport(f"saved as {name}"))
