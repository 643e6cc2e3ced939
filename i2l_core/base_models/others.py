"""Models that share names and sizes with ours and are others: recognised by the weights by which the host tells them.

ComfyUI's model_detection.py looks for the same names. LoRAs and predictors for our models were not made for these, so
they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherModel:
    """`mark`: found in names of weights or LoRA layers that only this model has, in any spelling."""

    title: str
    mark: re.Pattern[str]


OTHER_MODELS = (
    OtherModel("Ming-Image", re.compile(r"(^|\.)__ming_image__$")),
    OtherModel(
        "pixel-space Z-Image", re.compile(r"(^|[._])dec_net[._](cond_embed|res_blocks|final_layer|input)")
    ),
    OtherModel("TwinFlow", re.compile(r"(^|[._])(t|timestep)_embedder_2[._]")),
    OtherModel(
        "Qwen-Image 2.1", re.compile(r"transformer_blocks[._]\d+[._]img_mlp[._]gate_(up|layer)([._]|$)")
    ),
    OtherModel("Lens", re.compile(r"transformer_blocks[._]\d+[._]img_mlp[._]w1([._]|$)")),
    OtherModel(
        "FLUX.1",
        re.compile(
            r"double_blocks[._]\d+[._]img_mod[._]lin([._]|$)"
            r"|single_transformer_blocks[._]\d+[._](proj_mlp|norm[._]linear)([._]|$)"
        ),
    ),
)


def other_model(names: Iterable[str]) -> OtherModel | None:
    """Which of these models has weights or LoRA layers of such names; None when none has."""
    names = list(names)
    return next((other for other in OTHER_MODELS if any(map(other.mark.search, names))), None)
