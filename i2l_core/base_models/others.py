"""Models that share names and sizes with known base models, recognised by weights that only they have.

ComfyUI's model_detection.py uses the same names. LoRAs and predictors for the known models do not fit these, so they
are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherModel:
    """`mark`: a part of names of weights or LoRA layers that only this model has, in any spelling."""

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
    """The other model that has weights or LoRA layers of these names; None if there is none."""
    names = list(names)
    return next((other for other in OTHER_MODELS if any(map(other.mark.search, names))), None)
