"""Load a predictor: a file, or the folder of a Diffusion Template."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.errors import I2LError
from ..i2l_core.files.fingerprint import fingerprint
from ..i2l_core.host.folders import predictor_names, predictor_path
from ..i2l_core.host.predictors.runtime import load_predictor
from .report import NodeReport
from .sockets import CATEGORY, Predictor

AUTO = "auto"
ENCODER_WEIGHTS = {AUTO: None, "16 bit": False, "8 bit": True}  # option -> `float8` of load_predictor
NO_FILES = "put a predictor into models/i2l"


class LoadI2LPredictor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadI2LPredictor",
            display_name="Load i2L Predictor",
            category=CATEGORY,
            description="Loads a predictor: the network that turns reference pictures into a style LoRA. "
            "Each predictor is made for one base model, such as FLUX.2 klein.",
            search_aliases=["image to lora", "i2l", "style predictor", "hypernetwork", "load style model"],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input(
                    "predictor_name",
                    display_name="predictor",
                    options=predictor_names() or [NO_FILES],
                    tooltip="A .safetensors predictor in models/i2l, or a folder there with a model.py "
                    "(a Diffusion Template); names of folders end with /. Press R to refresh "
                    "the list.",
                ),
                io.Boolean.Input(
                    "allow_code",
                    default=False,
                    optional=True,
                    tooltip="Only for Diffusion Templates, which contain a program. On: the program may "
                    "run and can do anything that ComfyUI can do on this computer. The server "
                    "must allow it too: see the help of this node.",
                ),
                io.Combo.Input(
                    "encoder_weights",
                    options=list(ENCODER_WEIGHTS),
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Only for predictors of version 1: precision of the DINOv3 encoder's "
                    "weights. 16 bit takes 13.4 GB, 8 bit half of that and changes the LoRA "
                    "slightly. auto: 8 bit on GPUs with less than 16 GB.",
                ),
            ],
            outputs=[
                Predictor.Output(
                    "predictor",
                    tooltip="The predictor, for Images to LoRA. Its LoRAs fit only its own base model.",
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
    def fingerprint_inputs(
        cls, predictor_name: str, allow_code: bool = False, encoder_weights: str = AUTO
    ) -> str:
        return fingerprint(predictor_path(predictor_name))

    @classmethod
    def execute(
        cls, predictor_name: str, allow_code: bool = False, encoder_weights: str = AUTO
    ) -> io.NodeOutput:
        float8 = ENCODER_WEIGHTS[encoder_weights]
        predictor = load_predictor(predictor_path(predictor_name), allow_code, float8)
        return io.NodeOutput(predictor, ui=NodeReport(predictor.describe()))
