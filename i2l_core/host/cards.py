"""The cards (`i2l_core/card.py`) of nodes that put LoRAs on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher

from ..card import Card, lora_entry, warning
from ..lora_files.tensors import OtherKind
from .apply import LIVE
from .guidance import NO_NEGATIVE_SIDE, has_no_negative_side
from .live.branches import Branch
from .live.engine import attached
from .lora_model import PredictedLoRA, lora_of
from .patch import architecture_of, report


def applied_card(model: ModelPatcher, value: Any, strength: float, mode: str) -> Card | None:
    """The card of a LORA_MODEL that was applied to `model`. None for a kind that only the host can read."""
    architecture = architecture_of(model)
    if architecture is None and not isinstance(value, PredictedLoRA):
        return None
    try:
        lora = lora_of(value, architecture)
    except OtherKind:
        return None
    landed = len(report(lora, model).landed)
    role = "neutral" if getattr(value, "neutral", False) else "style"
    out = lora.n_layers - landed
    text = f"{out} layers of this LoRA have no place in this model and were left out"
    warnings = [warning("left_out", text, n=out)] if out else []
    return {
        "loras": [lora_entry(lora, role, landed=landed, mode=mode, strength=strength)],
        "warnings": warnings,
    }


def guidance_card(model: ModelPatcher, cfg: float | None = None) -> Card:
    """The card of the live LoRAs of `model`, which are guided at `cfg` if that is known."""
    loras = []
    for live in attached(model):
        role = "neutral" if live.branch is Branch.NEGATIVE else "style"
        side = {"side": live.branch.value} if live.branch else {}
        landed = len(report(live.lora, model).landed)
        loras.append(lora_entry(live.lora, role, landed=landed, mode=LIVE, strength=live.strength, **side))
    warnings = [warning("cfg_1", NO_NEGATIVE_SIDE)] if has_no_negative_side(cfg) else []
    return {"loras": loras, "warnings": warnings}
