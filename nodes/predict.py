"""Predict a style LoRA from reference pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.utils import ProgressBar
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..i2l_core.card import prediction_card
from ..i2l_core.host.lora_model import PredictedLoRA
from ..i2l_core.predictors.base import Predictor as LoadedPredictor
from ..i2l_core.references import Batch, references_from
from .report import NodeReport
from .sockets import CATEGORY, LoraModel, Predictor, Reference, check_keys

PREFIX = "image"
MAX_INPUTS = 64


class ImagesToLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        picture = io.MultiType.Input(
            PREFIX,
            types=[io.Image, Reference],
            tooltip="A reference picture or a batch of them, of any size. Style Reference adds a weight "
            "and a mask.",
            optional=True,
        )
        return io.Schema(
            node_id="ImagesToLoRA",
            display_name="Images to LoRA",
            category=CATEGORY,
            description="Predicts a LoRA of the style that the reference pictures share, in one forward "
            "pass. No training and no seed: the same pictures always give the same LoRA.",
            search_aliases=[
                "image to lora",
                "lora from image",
                "i2l",
                "style transfer",
                "style reference",
                "style lora",
                "predict lora",
                "ip adapter",
                "redux",
                "风格迁移",
                "垫图",
            ],
            has_intermediate_output=True,
            inputs=[
                Predictor.Input(
                    "predictor", tooltip="The predictor, from Load i2L Predictor or Load i2L Demo."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only for Qwen-Image-i2L Coarse and Fine, which also read the pictures with "
                    "the text encoder of Qwen-Image: connect Load CLIP with the type "
                    "qwen_image. Other predictors ignore it.",
                ),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(picture, prefix=PREFIX, min=1, max=MAX_INPUTS),
                    optional=True,  # and last: sockets after those that grow lose their links when nodes are copied
                    tooltip="One or more pictures of the same style. A new socket appears when you "
                    "connect one.",
                ),
            ],
            hidden=[io.Hidden.dynprompt],
            outputs=[
                LoraModel.Output(
                    "lora",
                    tooltip="The LoRA of the style, for Apply Predicted LoRA or Save Predicted LoRA.",
                ),
                LoraModel.Output(
                    "neutral",
                    tooltip="The neutral LoRA, predicted from as many plain gray pictures: what is left "
                    "without a style. For the negative side of Asymmetric CFG and Asymmetric Guider.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        predictor: LoadedPredictor,
        images: dict[str, Batch | None] | None = None,
        clip: Any = None,
        **unknown: Any,
    ) -> io.NodeOutput:
        wrong = sorted({*unknown, *({"images"} & _given(cls.hidden).keys())})
        check_keys(wrong, f"images.{PREFIX}0 to images.{PREFIX}{MAX_INPUTS - 1}")
        references = references_from(images or {})
        bar = ProgressBar(len(references) + 2)
        found = predictor.with_clip(clip).predict(references, bar.update_absolute)
        text = f"{len(references)} references, rank {found.lora.rank}, {found.lora.n_layers} layers"
        shown = NodeReport(
            text + (f"\n{found.note}" if found.note else ""),
            prediction_card(references, found.lora, found.note),
        )
        return io.NodeOutput(PredictedLoRA(found.lora), PredictedLoRA(found.neutral, neutral=True), ui=shown)


def _given(hidden: Any) -> Mapping[str, Any]:
    """The inputs of this node as written in the prompt; empty if no prompt runs it.

    ComfyUI silently drops a key that the node does not have, if its value is not a link.
    """
    context = get_executing_context()
    if hidden is None or hidden.dynprompt is None or context is None:
        return {}
    return hidden.dynprompt.get_node(context.node_id)["inputs"]
