"""Give a reference picture a weight and a mask."""

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
            description="Gives a reference picture a weight, and a mask for the part that shows the style. "
            "For the image sockets of Images to LoRA.",
            search_aliases=["reference weight", "reference mask", "weighted image", "style from part", "i2l"],
            has_intermediate_output=True,
            inputs=[
                # of the output's type too, so that the node passes its pictures on when it is bypassed
                io.MultiType.Input(
                    "image",
                    types=[io.Image, Reference],
                    tooltip="A picture or a batch; all of them get this weight. References from another "
                    "Style Reference or Images from Folder work too: their weights are "
                    "multiplied by this one.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=64.0,
                    step=0.05,
                    tooltip="Weight against the other references. 2: exactly as if the picture were "
                    "given twice, 0: left out.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to take the style from: white yes, black no. The predictor sees the black "
                    "part filled with the mean colour of the rest.",
                ),
            ],
            outputs=[
                Reference.Output(
                    "reference", tooltip="The weighted reference, for an image socket of Images to LoRA."
                )
            ],
        )

    @classmethod
    def execute(cls, image: Batch, weight: float, mask: Tensor | None = None) -> io.NodeOutput:
        references = references_with(image, weight, mask)
        used = references[0].full_mask
        part = "" if used is None else f", {used.mean():.0%} of the picture used"
        return io.NodeOutput(references, ui=NodeReport(f"weight {weight:g}{part}"))
