"""A reference picture with a weight and a mask."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.references import Batch, references_with
from .report import NodeReport
from .sockets import CATEGORY, Reference


class StyleReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StyleReference",
            display_name="Style Reference",
            category=CATEGORY,
            description="A reference picture that counts more or less than the others, or of which only a part "
            "is looked at. For the image sockets of Images to LoRA.",
            search_aliases=["reference weight", "reference mask", "weighted image", "style from part", "i2l"],
            has_intermediate_output=True,
            inputs=[
                # of the output's type too, so that the node passes its pictures on when it is bypassed
                io.MultiType.Input(
                    "image",
                    types=[io.Image, Reference],
                    tooltip="A picture, or a batch of them that all get this weight. Another Style Reference, or "
                    "Images from Folder: its weights are multiplied by this one.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=64.0,
                    step=0.05,
                    tooltip="How much it counts: 2 is exactly as if the picture were given twice, 0 as if it were "
                    "not given.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the style is taken from, black what is ignored. Predictors of version "
                    "1 and templates see the ignored part filled with the mean colour of the rest.",
                ),
            ],
            outputs=[Reference.Output("reference", tooltip="For an image socket of Images to LoRA.")],
        )

    @classmethod
    def execute(cls, image: Batch, weight: float, mask: Tensor | None = None) -> io.NodeOutput:
        references = references_with(image, weight, mask)
        share = "" if references[0].mask is None else f", {references[0].mask.mean():.0%} of it looked at"
        return io.NodeOutput(references, ui=NodeReport(f"weight {weight:g}{share}"))
