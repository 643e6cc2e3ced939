"""A LoRA from a LORA_MODEL socket as a file among the user's LoRAs."""

from __future__ import annotations

import os
from typing import Any

from ..lora_file import safe_join, save
from ..whole_weights import fused
from .folders import loras_folder
from .lora_model import lora_of


def save_lora_model(value: Any, filename: str, notes: str = "") -> str:
    """Save under `filename` or its next free number; return the name as LoRA loaders list it.

    `notes` goes into the file as modelspec.description. Raises I2LError for a name that leaves the folder, a
    LoRA that is not plain, and a disk that refuses; nothing is changed then.
    """
    lora = fused(lora_of(value))
    folder = loras_folder()
    path = save(
        lora, safe_join(folder, filename), {"modelspec.description": notes} if notes.strip() else None
    )
    return os.path.relpath(path, folder.resolve())
