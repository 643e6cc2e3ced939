"""Save a LoRA as a file in models/loras."""

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
            description="Saves a LoRA to models/loras, where every LoRA loader finds it. Never overwrites a "
            "file: if the name is taken, a number is added.",
            search_aliases=["save lora", "export lora", "export style", "keep style", "i2l"],
            is_output_node=True,
            inputs=[
                LoraModel.Input(
                    "lora", tooltip="The LoRA to save, from Images to LoRA, Fuse LoRAs or LoRA Blocks."
                ),
                io.String.Input(
                    "filename",
                    default="i2l/style",
                    tooltip="File name without .safetensors. A / makes a subfolder of models/loras.",
                ),
                io.String.Input(
                    "notes",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Free text stored in the file's metadata, such as the name of the style. "
                    "LoRA managers show it.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(KEY_FORMATS),
                    default="ComfyUI",
                    optional=True,
                    tooltip="Key names of the file. ComfyUI: for every LoRA loader of ComfyUI. "
                    "diffusers: for diffusers and PEFT. DiffSynth: for DiffSynth-Studio. The "
                    "weights are the same in all three.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=AS_IT_IS,
                    optional=True,
                    tooltip="Precision of the weights in the file. as it is: unchanged. bfloat16 and "
                    "float16 halve the size of a float32 LoRA.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture or a batch stored in the file as its thumbnail: the references, "
                    "or a result. LoRA managers show it.",
                ),
            ],
            outputs=[
                io.String.Output("lora_name", tooltip="The name of the saved file, as LoRA loaders list it."),
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
        saved = save_lora_model(lora, filename, notes, layout, precision, preview)
        return io.NodeOutput(saved.name, ui=NodeReport(str(saved)))
