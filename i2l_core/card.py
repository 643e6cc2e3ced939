"""What a node tells the front end about itself, as plain JSON: `web/card.js` draws it on the node.

    {"references": 4, "id": "93c1...", "thumbnails": ["data:image/jpeg;base64,..."],      Images to LoRA
     "loras": [{"role": "style" | "neutral", "rank": 4, "layers": 34,
                "blocks": [["layers.0", 0.12], ...],
                "landed": 34, "mode": "merged" | "live", "side": "positive" | "negative", "strength": 1.0}],
     "warnings": [{"id": "cfg_1", "text": "..."}]}

`id` stands for the references: the front end remembers thumbnails by it, and keeps them out of workflows.
`blocks` are shares of the LoRA's energy and add up to 1. The last line of a LoRA is there when it is on a model.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .energy import block_energies
from .images import Reference
from .lora import LoRA

MOST_THUMBNAILS = 8
THUMBNAIL_SIDE = 64  # pixels; drawn at half of that, sharp on dense screens

Card = dict[str, Any]


def prediction_card(references: Sequence[Reference], lora: LoRA) -> Card:
    """The card of a prediction, with thumbnails of the first references."""
    thumbnails = [_thumbnail(reference.pixels) for reference in references[:MOST_THUMBNAILS]]
    id = hashlib.sha256("".join(reference.hash for reference in references).encode()).hexdigest()[:16]
    return {"references": len(references), "id": id, "thumbnails": thumbnails, "loras": [lora_entry(lora)]}


def lora_entry(lora: LoRA, role: str = "style", **applied: Any) -> Card:
    """One LoRA of a card; `applied`: the entries of one that is on a model."""
    energies = block_energies(lora)
    total = sum(energies.values()) or 1.0
    return {
        "role": role,
        "rank": lora.rank,
        "layers": lora.n_layers,
        "blocks": [[block, round(energy / total, 4)] for block, energy in energies.items()],
        **applied,
    }


def warning(id: str, text: str) -> Card:
    """Something that the artist should know. `id` is what the front end translates, `text` the English."""
    return {"id": id, "text": text}


def _thumbnail(pixels: Tensor) -> str:
    """(H, W, 3) in 0..1 -> the middle square as a JPEG of a kilobyte or two, in a data URL."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    step = max(1, side // (4 * THUMBNAIL_SIDE))  # of a large picture a part of the pixels is enough
    square = pixels[top : top + side : step, left : left + side : step]
    array = (square * 255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(array).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE)).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
