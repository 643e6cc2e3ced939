"""A LoRA from a LORA_MODEL socket as a file among the user's LoRAs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import listed
from ..errors import I2LError
from ..files.atomic import safe_join
from ..lora import LoRA
from ..lora_files.file import save
from ..lora_files.keys import KeyFormat
from ..lora_files.tensors import unread_by_comfyui
from ..mixing.whole_weights import in_whole_weights
from ..references import references_from
from ..references.thumbnail import thumbnail
from .folders import loras_folder
from .lora_model import lora_of
from .patch import left_out_text

AS_IT_IS = "as it is"
PRECISIONS: Mapping[str, torch.dtype | None] = {
    AS_IT_IS: None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Saved:
    """A file among the user's LoRAs. `name`: as LoRA loaders list it.

    `left_out`: what the LoRA's own file had beside the diffusion model and this one has not. `unread`: layers that
    ComfyUI's own loader does not know by the names of this key format.
    """

    name: str
    left_out: Mapping[str, int]
    unread: int

    def __str__(self) -> str:
        unread = (
            f"; ComfyUI's Load LoRA does not know {self.unread} of its layers by these names, Load LoRA File does; for "
            "both set layout to ComfyUI"
        )
        return f"saved as {self.name}{left_out_text(self.left_out)}{unread if self.unread else ''}"


def save_lora_model(
    value: Any,
    filename: str,
    notes: str = "",
    key_format: KeyFormat = "ComfyUI",
    precision: str = AS_IT_IS,
    preview: Tensor | None = None,
) -> Saved:
    """Save under `filename` or its next free number.

    `notes` goes into the file as modelspec.description, `preview`, an IMAGE (B, H, W, C), as
    modelspec.thumbnail: up to four of its pictures side by side. Raises I2LError for a name that leaves the folder, a
    LoRA that is not plain or does not fit the precision, and a disk that refuses; nothing is changed then.
    """
    lora = _in_precision(in_whole_weights(lora_of(value)), precision)
    folder = loras_folder()
    metadata = {"modelspec.description": notes} if notes.strip() else {}
    if preview is not None:
        metadata["modelspec.thumbnail"] = thumbnail(references_from({"preview": preview}))
    path = save(lora, safe_join(folder, filename), metadata, key_format)
    return Saved(os.path.relpath(path, folder.resolve()), lora.left_out, unread_by_comfyui(lora, key_format))


def _in_precision(lora: LoRA, precision: str) -> LoRA:
    if precision not in PRECISIONS:
        raise I2LError(f"precision must be one of {listed(PRECISIONS)}, got {precision!r}")
    lora.check_finite()
    converted = lora.to(dtype=PRECISIONS[precision])
    try:
        converted.check_finite()
    except I2LError as error:
        raise I2LError(
            f"some numbers of this LoRA are too large for {precision}; save it as bfloat16 or float32"
        ) from error
    return converted
