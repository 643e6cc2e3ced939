"""Load the demo's Infinity, which ships with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.host.demo.infinity import load_infinity_demo
from .sockets import INFINITY, InfinityModel


class LoadInfinityDemo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadInfinityDemo",
            display_name="Load Infinity Demo",
            category=INFINITY,
            description="Loads a small Infinity that ships with the pack and draws 128x128 pictures, with its text "
            "encoder and VAE. It needs no download and runs on any computer.",
            search_aliases=[
                "infinity",
                "example",
                "try without download",
                "tiny model",
                "style transfer",
                "i2l",
            ],
            inputs=[],
            outputs=[
                InfinityModel.Output(
                    "model", tooltip="The model, for Infinity Sampler. Its pictures are 128x128, in 7 scales."
                ),
                io.Clip.Output(
                    "clip",
                    tooltip="Its text encoder, that of Load i2L Demo. It knows a few dozen words, listed in the help.",
                ),
                io.Vae.Output("vae", tooltip="Its VAE, for VAE Decode, VAE Encode and Infinity Style."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_infinity_demo())
