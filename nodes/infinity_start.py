"""A picture that Infinity starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..i2l_core.host.infinity.sample import Start
from .sockets import INFINITY, InfinityStart


class InfinityStartFromPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InfinityStartFromPicture",
            display_name="Infinity Start from Picture",
            category=INFINITY,
            description="Keeps the coarse part of a picture, and Infinity draws the rest: image to image for Infinity. "
            "With all scales kept and a style, the picture is drawn again in that style.",
            search_aliases=["infinity", "img2img", "image to image", "init image", "restyle", "i2l"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="The picture, from VAE Encode with Infinity's VAE. Its size must be the one that Infinity "
                    "Sampler draws.",
                ),
                io.Int.Input(
                    "scales_kept",
                    default=5,
                    min=0,
                    max=13,
                    tooltip="How many scales of the picture are kept, from coarse to fine. Few: only its layout. All: "
                    "the picture itself. A picture has 13 scales at 1M, 12 at 0.60M, 10 at 0.25M, 7 at 0.06M.",
                ),
            ],
            outputs=[InfinityStart.Output("start", tooltip="The start, for Infinity Sampler.")],
        )

    @classmethod
    def execute(cls, latent: Mapping[str, Any], scales_kept: int = 5) -> io.NodeOutput:
        return io.NodeOutput(Start(latent, scales_kept))
