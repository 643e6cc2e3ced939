"""The card of a node as plain JSON. `web/card.js` draws it on the node.

    {"references": 4, "id": "93c1...", "thumbnails": ["data:image/jpeg;base64,..."],      Images to LoRA
     "loras": [{"role": "style" | "neutral", "rank": 4, "layers": 34,
                "blocks": [["main blocks", 0, 0.12], ...],
                "landed": 34, "mode": "merged" | "live", "side": "positive" | "negative", "strength": 1.0}],
     "lines": ["..."], "warnings": [{"id": "cfg_1", "text": "..."}]}

`id` identifies the references: the front end caches thumbnails under it and keeps them out of workflows.
`blocks` are fractions of the LoRA's energy and add up to 1. Fields from "landed" on need an applied LoRA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .lora import LoRA
from .mixing.plot import inner_by_position
from .references import Reference
from .references.thumbnail import thumbnail

MOST_THUMBNAILS = 8
THUMBNAIL_SIDE = 64  # pixels; drawn at half of that, sharp on dense screens

Card = dict[str, Any]


def prediction_card(references: Sequence[Reference], lora: LoRA, note: str = "") -> Card:
    """The card of a prediction, with thumbnails of the first references. `note`: a warning for the artist."""
    return {
        "references": len(references),
        "id": hashlib.sha256("".join(each.hash for each in references).encode()).hexdigest()[:16],
        "thumbnails": [thumbnail([each], THUMBNAIL_SIDE) for each in references[:MOST_THUMBNAILS]],
        "loras": [lora_entry(lora)],
        "lines": [note] if note else [],
    }


def text_card(text: str) -> Card:
    """The card of a node that reports only text: one entry per line."""
    return {"lines": text.splitlines()}


def lora_entry(lora: LoRA, role: str = "style", **applied: Any) -> Card:
    """The entry of one LoRA. `applied`: more fields, for a LoRA that is applied to a model."""
    # by block, in the order in which a picture passes through them
    energies: dict[tuple[str, int], float] = {}
    for place, energy in sorted(inner_by_position(lora, lora).items(), key=lambda item: item[0].order):
        block = place.section, place.index
        energies[block] = energies.get(block, 0.0) + energy
    total = sum(energies.values()) or 1.0
    blocks = [[*block, round(energy / total, 4)] for block, energy in energies.items()]
    return {"role": role, "rank": lora.rank, "layers": lora.n_layers, "blocks": blocks, **applied}


def warning(id: str, text: str, **values: Any) -> Card:
    """A warning. The front end translates it by `id` and `values`; `text` is the English version."""
    return {"id": id, "text": text, **values}
