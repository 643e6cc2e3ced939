"""Draw with Infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..i2l_core.host.infinity.cards import drawn_card
from ..i2l_core.host.infinity.latent import latent_of
from ..i2l_core.host.infinity.model import InfinityModel as LoadedModel
from ..i2l_core.host.infinity.sample import ASPECTS, Request, Start, sample
from ..i2l_core.host.infinity.style import PictureStyle, WordStyle
from ..i2l_core.host.infinity.vae import infinity_vae
from ..i2l_core.infinity.scales import SIZES
from .report import NodeReport
from .sockets import INFINITY, InfinityModel, InfinityStart, InfinityStyle

NO_CONTENT = (
    "the picture without the style was not drawn to its end; keep the structure and set structure_end of Infinity "
    "Style to 1, or do not connect content"
)


class InfinitySampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InfinitySampler",
            display_name="Infinity Sampler",
            category=INFINITY,
            description="Draws a picture with Infinity, scale by scale, and in a style if one is connected. The same "
            "seed gives the same picture.",
            search_aliases=["infinity", "sampler", "ksampler", "autoregressive", "style transfer", "i2l"],
            has_intermediate_output=True,
            inputs=[
                InfinityModel.Input("model", tooltip="The model, from Load Infinity."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What to draw. Name the style in it too, in simple words. Several prompts with timestep "
                    "ranges draw different scales: layout from one, details from another.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to avoid. Not connected: the model's own empty prompt.",
                ),
                InfinityStyle.Input(
                    "style",
                    optional=True,
                    tooltip="The style, from Infinity Style or Infinity Style from Words.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(reversed(SIZES)),
                    default="1M",
                    tooltip="How many pixels. The 2B was trained for 1M alone; smaller is faster and worse.",
                ),
                io.Combo.Input(
                    "aspect", options=list(ASPECTS), default="1:1", tooltip="Width to height of the picture."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random numbers of the first picture; the next of a batch has the next seed.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How closely the prompt is followed. 3 to 4 is usual. At 1 there is no negative side, and "
                    "drawing takes half of the time.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many pictures."),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much is left to chance. Low: clean and alike. High: varied and rough. 0: as the model "
                    "was released, 0.5 for the 2B and 1 for the 8B.",
                ),
                io.Float.Input(
                    "top_p",
                    default=0.97,
                    min=0.5,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Leaves out unlikely details: what has a smaller chance than 1 minus this is not drawn. 1: "
                    "nothing is left out.",
                ),
                io.String.Input(
                    "cfg_curve",
                    default="",
                    optional=True,
                    advanced=True,
                    placeholder="0: 1, 0.9: 1, 1: 0",
                    tooltip="How cfg changes along the scales, as keyframes position: factor (0 = first scale, 1 = "
                    "last). Factor 1: all of cfg, 0: none, and the scales from there on take half of the time. Empty: "
                    "all of cfg everywhere.",
                ),
                InfinityStart.Input(
                    "start",
                    optional=True,
                    tooltip="A picture to start from, from Infinity Start from Picture.",
                ),
                io.Vae.Input(
                    "preview_vae",
                    optional=True,
                    tooltip="Infinity's VAE, to see the picture after each scale while it is drawn.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The picture, for VAE Decode with Infinity's VAE."),
                io.Latent.Output(
                    "content",
                    tooltip="The same picture without the style, which is drawn beside it while the structure is "
                    "kept.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        positive: Sequence[Any],
        size: str,
        aspect: str,
        seed: int,
        cfg: float,
        batch_size: int,
        temperature: float = 0.0,
        top_p: float = 0.97,
        cfg_curve: str = "",
        negative: Sequence[Any] | None = None,
        style: PictureStyle | WordStyle | None = None,
        start: Start | None = None,
        preview_vae: Any = None,
    ) -> io.NodeOutput:
        request = Request(
            positive,
            negative,
            style,
            start,
            size,
            aspect,
            seed,
            cfg,
            cfg_curve,
            temperature,
            top_p,
            batch_size,
        )
        found = sample(model, request, None if preview_vae is None else infinity_vae(preview_vae))
        card = drawn_card(model, found.picture, style)
        content = found.picture if style is None else found.content
        other = ExecutionBlocker(NO_CONTENT) if content is None else latent_of(content)
        return io.NodeOutput(latent_of(found.picture), other, ui=NodeReport("\n".join(card["lines"]), card))
