"""Load the demo model that ships with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.host.demo.world import load_demo
from .sockets import CATEGORY, Predictor


class LoadI2LDemo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadI2LDemo",
            display_name="Load i2L Demo",
            category=CATEGORY,
            description="Loads the demo model that ships with the pack, which draws 128x128 pictures, with its "
            "text encoder, VAE and predictor. It needs no download and runs on any computer.",
            search_aliases=["i2l", "example", "try without download", "tiny model", "image to lora demo"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The demo diffusion model. It draws 128x128 pictures of stars, fish, houses, ...",
                ),
                io.Clip.Output(
                    "clip",
                    tooltip="Its text encoder. It knows a few dozen words, listed in the help of this node.",
                ),
                io.Vae.Output("vae", tooltip="Its VAE: 16 channels at 1/8 of the size, as in Z-Image."),
                Predictor.Output("predictor", tooltip="Its predictor, for Images to LoRA."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo())
