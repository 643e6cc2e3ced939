"""A style for Infinity, from pictures or from words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..i2l_core.host.infinity.style import PictureStyle, WordStyle
from ..i2l_core.host.infinity.vae import infinity_vae
from ..i2l_core.infinity.blend import BLEND, MODES, BlendSettings
from ..i2l_core.infinity.style import COVER, FITS, StyleSettings
from ..i2l_core.references import Batch, references_from
from .sockets import INFINITY, InfinityStyle, Reference, strength_input


class InfinityStyleFromPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InfinityStyle",
            display_name="Infinity Style",
            category=INFINITY,
            description="Takes the style of reference pictures for Infinity, without training: the colours of their "
            "large areas and their tone. The picture keeps the structure that it has without the style. Principal "
            "Feature Blending and Structural Attention Correction of arXiv 2507.04482.",
            search_aliases=[
                "infinity",
                "style transfer",
                "style reference",
                "pfb",
                "sac",
                "principal feature",
                "i2l",
            ],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of this model, from Load Infinity VAE."),
                io.MultiType.Input(
                    "image",
                    types=[io.Image, Reference],
                    tooltip="The picture whose style to take. Several are averaged. Style Reference gives one a weight "
                    "and a mask.",
                ),
                *_knobs(),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=COVER,
                    advanced=True,
                    tooltip="How a reference of another aspect is used. cover: cropped. contain: framed in its mean "
                    "colour.",
                ),
            ],
            outputs=[InfinityStyle.Output("style", tooltip="The style, for Infinity Sampler.")],
        )

    @classmethod
    def execute(cls, vae: Any, image: Batch, fit: str = COVER, **knobs: Any) -> io.NodeOutput:
        references = tuple(references_from({"image": image}))
        return io.NodeOutput(PictureStyle(infinity_vae(vae), references, _settings(fit=fit, **knobs)))


class InfinityStyleFromWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InfinityStyleFromWords",
            display_name="Infinity Style from Words",
            category=INFINITY,
            description="Takes a style for Infinity from words instead of pictures: the colours of large areas and the "
            "tone that these words alone give with the same seed.",
            search_aliases=["infinity", "style words", "consistent style", "style prompt", "pfb", "i2l"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The words of the style, from CLIP Text Encode with Infinity's text encoder.",
                ),
                *_knobs(),
            ],
            outputs=[InfinityStyle.Output("style", tooltip="The style, for Infinity Sampler.")],
        )

    @classmethod
    def execute(cls, conditioning: Sequence[Any], **knobs: Any) -> io.NodeOutput:
        return io.NodeOutput(WordStyle(conditioning, _settings(**knobs)))


def _knobs() -> list[io.Input]:
    return [
        strength_input("strength", "1: as in the paper. 0: off. Below 0: away from the style."),
        io.Float.Input(
            "alpha",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How much of the style is taken, for mode blend. 0: all of it, so the layout of the reference too. "
            "1: mostly its main colours, as in the paper. Large: those alone.",
        ),
        io.Boolean.Input(
            "keep_structure",
            default=True,
            tooltip="The picture keeps the shapes and the layout that the same seed gives without the style.",
        ),
        io.Float.Input(
            "structure_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Up to where the structure is kept, as a share of the scales. 1: to the end. Lower: details are "
            "freer, and drawing is faster.",
        ),
        io.Int.Input(
            "scale",
            default=3,
            min=1,
            max=13,
            advanced=True,
            tooltip="The scale after which the style is blended in, from coarse to fine. The paper uses the third.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=BLEND,
            advanced=True,
            tooltip="blend: all components of the style, the main ones most. top k: its first k components. replace: "
            "its whole coarse picture.",
        ),
        io.Int.Input(
            "k", default=1, min=1, max=64, advanced=True, tooltip="How many components, for mode top k."
        ),
        io.Combo.Input(
            "draws",
            options=["shared", "independent"],
            default="shared",
            advanced=True,
            tooltip="shared: the pictures with and without the style are drawn with the same random numbers, so that "
            "they are alike. independent: each with its own.",
        ),
    ]


def _settings(
    strength: float = 1.0,
    alpha: float = 1.0,
    keep_structure: bool = True,
    structure_end: float = 1.0,
    scale: int = 3,
    mode: str = BLEND,
    k: int = 1,
    draws: str = "shared",
    fit: str = COVER,
) -> StyleSettings:
    blend = BlendSettings(mode, alpha, k, strength, scale)
    return StyleSettings(blend, keep_structure, structure_end, draws == "shared", fit)
