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
            description="Takes the style of reference pictures for Infinity, without training: Principal Feature "
            "Blending, and Structural Attention Correction that keeps the structure of the picture.",
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
                    tooltip="A picture, or several, whose styles are averaged. Style Reference adds a weight and a "
                    "mask.",
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
            description="Takes a style for Infinity from words: pictures of one batch, or of several runs, get the "
            "style that the words alone would give.",
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
            tooltip="How few of the style's components are taken, for mode blend. 0: all of them, so the layout of "
            "the reference too. 1: as in the paper. Large: its main component alone.",
        ),
        io.Boolean.Input(
            "keep_structure",
            default=True,
            tooltip="The styled picture keeps the structure of the one that is drawn without the style.",
        ),
        io.Float.Input(
            "structure_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="When the structure is set free, as a share of the scales. Lower is faster: the picture without "
            "the style is not drawn any further.",
        ),
        io.Int.Input(
            "scale",
            default=3,
            min=1,
            max=13,
            advanced=True,
            tooltip="The scale after which the style is blended in. The paper uses the third.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=BLEND,
            advanced=True,
            tooltip="blend: components by weight. replace: the style's whole coarse picture. top k: its first k "
            "components.",
        ),
        io.Int.Input(
            "k", default=1, min=1, max=64, advanced=True, tooltip="How many components, for mode top k."
        ),
        io.Combo.Input(
            "draws",
            options=["shared", "independent"],
            default="shared",
            advanced=True,
            tooltip="shared: both pictures draw with the same random numbers. independent: each with its own.",
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
