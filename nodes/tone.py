"""Blend the tone of pictures into what a model draws."""

from __future__ import annotations

import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..i2l_core.host.tone_blend import with_tone
from ..i2l_core.references import Batch, references_from
from ..i2l_core.schedule import Schedule
from ..i2l_core.tone_blend import MAX_GRID, ToneSettings
from .report import NodeReport
from .sockets import CATEGORY, Reference, curve_input, start_percent_input, strength_input


class StyleToneBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StyleToneBlend",
            display_name="Style Tone Blend",
            category=CATEGORY,
            description="Gives pictures the colours and light of a reference picture, on any image model. It needs no "
            "predictor and no download. It does not transfer brush strokes or lines: use Images to LoRA for those.",
            search_aliases=[
                "color match",
                "colour transfer",
                "palette",
                "tone",
                "style transfer",
                "adain",
                "principal feature blending",
                "pfb",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any model that draws pictures. The input model does not change."
                ),
                io.Vae.Input("vae", tooltip="The VAE of this model."),
                io.MultiType.Input(
                    "image",
                    types=[io.Image, Reference],
                    tooltip="The picture whose colours and light to take. Several pictures, or references with "
                    "weights and masks, are averaged. Size and aspect do not matter.",
                ),
                strength_input(
                    "strength",
                    "1: the tone of the reference, 0.5: half way, 0: off. Below 0: away from it.",
                ),
                io.Int.Input(
                    "grid",
                    default=4,
                    min=1,
                    max=MAX_GRID,
                    tooltip="How fine the tone is, in cells a side. 1: only the mean colour. 4: broad colours "
                    "and light. From 8 on shapes of the reference begin to show.",
                ),
                io.Float.Input(
                    "alpha",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How much of the reference's coarse picture is taken. 0: all of it. 1: mostly its "
                    "main colour component. Large: that component alone.",
                ),
                start_percent_input("blend"),
                io.Float.Input(
                    "end_percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="When the blend stops, as a fraction of the sampling. At 0.5 the second half paints "
                    "details freely on the new colours.",
                ),
                curve_input(),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the tone, for a KSampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        image: Batch,
        strength: float,
        grid: int,
        alpha: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 0.5,
        curve: str = "",
    ) -> io.NodeOutput:
        references = references_from({"image": image})
        settings = ToneSettings(strength, grid, alpha)
        schedule = Schedule.parse(start_percent, end_percent, curve)
        toned = with_tone(model, vae, references, settings, schedule)
        pictures = f"{len(references)} pictures" if len(references) > 1 else "1 picture"
        return io.NodeOutput(
            toned, ui=NodeReport(f"tone of {pictures}, {grid} x {grid} cells, strength {strength:g}")
        )
