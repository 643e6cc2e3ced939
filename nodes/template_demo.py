"""Load the demo's FLUX.2 and its templates, which ship with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..i2l_core.host.demo.flux2 import load_flux2_demo
from .sockets import TEMPLATES, Predictor, Template


class LoadI2LTemplateDemo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadI2LTemplateDemo",
            display_name="Load i2L Template Demo",
            category=TEMPLATES,
            description="Loads a tiny FLUX.2 that ships with the pack, which draws 128x128 pictures, with its text "
            "encoder, VAE and predictor and two templates. It needs no download and runs on any computer.",
            search_aliases=["i2l", "template example", "flux2 demo", "try without download", "tiny flux"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The demo FLUX.2. It draws the same things as the model of Load i2L Demo.",
                ),
                io.Clip.Output("clip", tooltip="Its text encoder, that of Load i2L Demo."),
                io.Vae.Output("vae", tooltip="Its VAE, that of Load i2L Demo."),
                Predictor.Output("predictor", tooltip="Its predictor, for Images to LoRA."),
                Template.Output(
                    "structure",
                    tooltip="A template for Template Picture: a picture of white figures on black says where they "
                    "are drawn.",
                ),
                Template.Output(
                    "brightness", tooltip="A template for Template Value: 0.1 dark, 0.5 neutral, 0.9 bright."
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_flux2_demo())
