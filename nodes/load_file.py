"""Load a LoRA file as a LORA_MODEL, to fuse, preview or apply it."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.base_models import MODELS
from ..i2l_core.errors import I2LError
from ..i2l_core.files.fingerprint import fingerprint
from ..i2l_core.host.folders import lora_files, lora_path
from ..i2l_core.host.lora_model import PredictedLoRA
from ..i2l_core.host.patch import left_out_text
from ..i2l_core.lora_files.file import load
from .report import NodeReport
from .sockets import CATEGORY, LoraModel

AUTO = "auto"
NO_FILES = "put a LoRA into models/loras"


class LoadLoRAFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadLoRAFile",
            display_name="Load LoRA File",
            category=CATEGORY,
            description="Loads a LoRA file from models/loras for the nodes that take a LoRA: Fuse LoRAs, "
            "LoRA Preview, LoRA Blocks, Apply Predicted LoRA, Asymmetric CFG. Reads the key "
            "names of ComfyUI, diffusers, PEFT, kohya and DiffSynth.",
            search_aliases=["load lora", "lora file", "lora model", "mix lora", "diffsynth lora", "i2l"],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_files() or [NO_FILES],
                    tooltip="A .safetensors file in models/loras. Press R to refresh the list.",
                ),
                io.Combo.Input(
                    "base_model",
                    options=[AUTO, *(model.id for model in MODELS)],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Base model of the LoRA. auto detects it; set it only if an error asks you to.",
                ),
            ],
            outputs=[
                LoraModel.Output("lora", tooltip="The LoRA, in the same form as from Images to LoRA."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str) -> bool | str:
        try:
            lora_path(lora_name)
        except I2LError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, base_model: str = AUTO) -> str:
        return f"{fingerprint(lora_path(lora_name))}-{base_model}"

    @classmethod
    def execute(cls, lora_name: str, base_model: str = AUTO) -> io.NodeOutput:
        lora = load(lora_path(lora_name), "" if base_model == AUTO else base_model)
        text = f"{lora.n_layers} layers, rank {lora.rank}, for {lora.base_model or 'an unknown base model'}"
        text += left_out_text(lora.left_out)
        return io.NodeOutput(PredictedLoRA(lora), ui=NodeReport(text))
