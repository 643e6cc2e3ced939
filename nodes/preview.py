"""Plot a LoRA, or two LoRAs and how similar they are."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..i2l_core.host.lora_model import lora_of
from ..i2l_core.mixing.plot import SIZE, draw
from .sockets import CATEGORY, LoraModel


class LoRAPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRAPreview",
            display_name="LoRA Preview",
            category=CATEGORY,
            description="Plots a LoRA: its size in each block and each kind of layer, and the rank it "
            "needs. With a second LoRA: how similar the two styles are.",
            search_aliases=["show lora", "inspect lora", "compare lora", "lora plot", "lora spectrum", "i2l"],
            is_output_node=True,
            inputs=[
                LoraModel.Input(
                    "lora", tooltip="The LoRA to plot, from Images to LoRA, Fuse LoRAs or Load LoRA File."
                ),
                LoraModel.Input(
                    "compare", optional=True, tooltip="Another LoRA for the same base model, to compare with."
                ),
                io.Int.Input(
                    "width",
                    default=SIZE[0],
                    min=600,
                    max=4800,
                    step=100,
                    optional=True,
                    tooltip="Width of the plot in pixels. The height is three quarters of it.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The plot, to save or preview.")],
        )

    @classmethod
    def execute(
        cls, lora: dict[str, Tensor], width: int = SIZE[0], compare: dict[str, Tensor] | None = None
    ) -> io.NodeOutput:
        other = None if compare is None else lora_of(compare)
        image = draw(lora_of(lora), other, (width, width * 3 // 4))[None]  # HWC -> BHWC
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
