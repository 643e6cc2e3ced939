"""Load Infinity: its transformer, its text encoder and its VAE."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..i2l_core.card import Card
from ..i2l_core.errors import I2LError
from ..i2l_core.host.infinity.cards import model_card, vae_card
from ..i2l_core.host.infinity.folders import MODELS, TEXTS, VAES, file_names, file_path, files_fingerprint
from ..i2l_core.host.infinity.model import load_model
from ..i2l_core.host.infinity.text import load_text
from ..i2l_core.host.infinity.vae import load_vae
from .report import NodeReport
from .sockets import INFINITY, InfinityModel

NO_FILES = "put a file there first"
DEFAULT, FLOAT8 = "default", "fp8"


class LoadInfinity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadInfinity",
            display_name="Load Infinity",
            category=INFINITY,
            description="Loads Infinity, a model that draws a picture scale by scale, from coarse to fine. It takes "
            "a style from one picture or from words, without training.",
            search_aliases=[
                "infinity",
                "bitwise autoregressive",
                "var",
                "style transfer",
                "pfb",
                "sac",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                _file_input(
                    "model_name",
                    MODELS,
                    "An Infinity model in models/diffusion_models, such as infinity_2b_reg.pth. Of a model in "
                    "several files, choose the first: the others are read too. Press R to refresh the list.",
                ),
                io.Combo.Input(
                    "weights",
                    options=[DEFAULT, FLOAT8],
                    default=DEFAULT,
                    advanced=True,
                    tooltip="fp8: the large weights in 8 bits. They take half of the memory, and pictures change.",
                ),
            ],
            outputs=[InfinityModel.Output("model", tooltip="The model, for Infinity Sampler.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        return _validated(MODELS, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name: str, weights: str = DEFAULT) -> str:
        return files_fingerprint(MODELS, model_name)

    @classmethod
    def execute(cls, model_name: str, weights: str = DEFAULT) -> io.NodeOutput:
        model = load_model(file_path(MODELS, model_name), weights == FLOAT8)
        return _reported(model, model_card(model))


class LoadInfinityTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadInfinityTextEncoder",
            display_name="Load Infinity Text Encoder",
            category=INFINITY,
            description="Loads flan-t5-xl, the text encoder of Infinity, for CLIP Text Encode. Load CLIP takes its "
            "file for another encoder and would give other pictures.",
            search_aliases=["infinity", "flan-t5-xl", "t5", "clip loader", "text encoder", "i2l"],
            inputs=[
                _file_input(
                    "text_encoder_name",
                    TEXTS,
                    "flan-t5-xl in models/text_encoders: its encoder alone, or the first file of the whole model. "
                    "Press R to refresh the list.",
                )
            ],
            outputs=[io.Clip.Output("clip", tooltip="The text encoder, for CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name: str) -> bool | str:
        return _validated(TEXTS, text_encoder_name)

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name: str) -> str:
        return files_fingerprint(TEXTS, text_encoder_name)

    @classmethod
    def execute(cls, text_encoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_text(file_path(TEXTS, text_encoder_name)))


class LoadInfinityVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadInfinityVAE",
            display_name="Load Infinity VAE",
            category=INFINITY,
            description="Loads the VAE of Infinity, for VAE Decode, VAE Encode and Infinity Style.",
            search_aliases=["infinity", "vae", "bsq", "tokenizer", "i2l"],
            has_intermediate_output=True,
            inputs=[
                _file_input(
                    "vae_name",
                    VAES,
                    "A VAE of Infinity in models/vae: infinity_vae_d32reg.pth for the 2B, "
                    "infinity_vae_d56_f8_14_patchify.pth for the 8B. Press R to refresh the list.",
                )
            ],
            outputs=[io.Vae.Output("vae", tooltip="The VAE. It works with Infinity alone.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str) -> bool | str:
        return _validated(VAES, vae_name)

    @classmethod
    def fingerprint_inputs(cls, vae_name: str) -> str:
        return files_fingerprint(VAES, vae_name)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        path = file_path(VAES, vae_name)
        vae = load_vae(path)
        return _reported(vae, vae_card(vae, path.name))


def _reported(loaded: Any, card: Card) -> io.NodeOutput:
    return io.NodeOutput(loaded, ui=NodeReport("\n".join(card["lines"]), card))


def _file_input(name: str, folder: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(
        name, display_name="file", options=file_names(folder) or [NO_FILES], tooltip=tooltip
    )


def _validated(folder: str, name: str) -> bool | str:
    try:
        file_path(folder, name)
    except I2LError as error:
        return str(error)
    return True
