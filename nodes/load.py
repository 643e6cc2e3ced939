"""Load a predictor file."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.errors import I2LError
from ..i2l_core.host.folders import fingerprint, predictor_files, predictor_path
from ..i2l_core.host.open import open_predictor
from .sockets import CATEGORY, Predictor

NO_FILES = "put a predictor into models/i2l"


class LoadI2LPredictor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadI2LPredictor",
            display_name="Load i2L Predictor",
            category=CATEGORY,
            description="Loads a predictor: the network that turns reference pictures into a style LoRA. "
            "It belongs to one base model, such as FLUX.2 klein.",
            search_aliases=["image to lora", "i2l", "style predictor", "hypernetwork", "load style model"],
            inputs=[
                io.Combo.Input(
                    "predictor_name",
                    display_name="predictor",
                    options=predictor_files() or [NO_FILES],
                    tooltip="A .safetensors predictor file in models/i2l. Press R to list a file just added.",
                ),
            ],
            outputs=[
                Predictor.Output(
                    "predictor",
                    tooltip="For Images to LoRA. Its LoRAs fit only the base model it was made for.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, predictor_name: str) -> bool | str:
        try:
            predictor_path(predictor_name)
        except I2LError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, predictor_name: str) -> str:
        return fingerprint(predictor_path(predictor_name))

    @classmethod
    def execute(cls, predictor_name: str) -> io.NodeOutput:
        return io.NodeOutput(open_predictor(predictor_path(predictor_name)))
