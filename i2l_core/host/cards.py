"""The cards (`i2l_core/card.py`) of nodes that apply LoRAs to a MODEL."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher

from ..card import Card, lora_entry, warning
from .apply import LIVE, Applied
from .guidance import NO_NEGATIVE_SIDE, has_no_negative_side
from .live.branches import Branch
from .live.engine import attached
from .patch import Fit

NEUTRAL_AS_STYLE = (
    "this is a neutral LoRA, predicted from gray pictures: it has no style; connect the output lora"
)


def applied_card(applied: Applied) -> Card | None:
    """The card of an applied LORA_MODEL; None for kinds of LoRA that only the host can read."""
    if applied.fit is None:
        return None
    role = "neutral" if applied.neutral else "style"
    entry = _entry(applied.fit, role, mode=applied.mode, strength=applied.strength)
    return {"loras": [entry], "warnings": [*_left_out(applied.fit), *_no_style(applied.neutral)]}


def guidance_card(model: ModelPatcher, style: Any, cfg: float | None = None) -> Card:
    """The card of the live LoRAs of `model`, one of them from `style`, guided at `cfg` if that is known."""
    loras, warnings = [], []
    for live in attached(model):
        assert live.fit is not None  # `attach` made sure
        role = "neutral" if live.branch is Branch.NEGATIVE else "style"
        side = {"side": live.branch.value} if live.branch else {}
        loras.append(_entry(live.fit, role, mode=LIVE, strength=live.strength, **side))
        warnings += _left_out(live.fit)
    if has_no_negative_side(cfg):
        warnings.append(warning("cfg_1", NO_NEGATIVE_SIDE))
    warnings += _no_style(getattr(style, "neutral", False))
    return {"loras": loras, "warnings": warnings}


def _entry(fit: Fit, role: str, **applied: Any) -> Card:
    entry = lora_entry(fit.lora, role, landed=fit.lora.n_layers, **applied)
    return {**entry, "layers": fit.n_layers}


def _no_style(neutral: bool) -> list[Card]:
    return [warning("no_style", NEUTRAL_AS_STYLE)] if neutral else []


def _left_out(fit: Fit) -> list[Card]:
    out = len(fit.missing) + sum(fit.lora.left_out.values())
    text = f"{out} layers of this LoRA do not exist in this model and were left out"
    return [warning("left_out", text, n=out)] if out else []
