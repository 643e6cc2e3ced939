"""Load the tiny world that ships with the pack."""

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
            description="Loads the tiny world that ships with the pack: a model of 128x128 pictures with "
            "its text encoder, VAE and predictor. Everything runs without a download, on any computer.",
            search_aliases=["i2l", "example", "try without download", "tiny model", "image to lora demo"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model", tooltip="The small diffusion model: 128x128 pictures of stars, fish, houses, ..."
                ),
                io.Clip.Output(
                    "clip", tooltip="Its text encoder. It knows a few dozen words: see the help of this node."
                ),
                io.Vae.Output("vae", tooltip="Its VAE, 16 channels at 1/8, like that of Z-Image."),
                Predictor.Output("predictor", tooltip="Its predictor, for Images to LoRA."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo())
