"""Asymmetric guidance (arXiv 2606.13809, eq. 7-9): different LoRAs on the positive and the negative side of CFG."""

from __future__ import annotations

import math
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..schedule import ALWAYS, Schedule
from .live.branches import Branch
from .live.engine import attach, attached
from .live.loras import LiveLoRA
from .lora_model import fit_lora_model

NO_NEGATIVE_SIDE = "cfg is 1: there is no negative side, only the style acts"


def asymmetric(
    model: ModelPatcher,
    style: Any,
    neutral: Any = None,
    strength: float = 1.0,
    neutral_strength: float = 1.0,
    schedule: Schedule = ALWAYS,
) -> ModelPatcher:
    """A clone of `model` that runs positive rows with `style` and negative rows with `neutral` (LORA_MODELs).

    Both sides stay in one batched forward if the host batches them. Without `neutral` negative rows run the plain
    model; a layer that only one LoRA has counts as zero in the other. `schedule`: for both LoRAs. Raises I2LError,
    before anything is cloned, for a LoRA that does not fit or numbers out of range.
    """

    def side(value: Any, strength: float, branch: Branch) -> LiveLoRA:
        fit = fit_lora_model(value, model)
        return LiveLoRA(fit.lora, strength, branch, schedule=schedule, fit=fit)

    loras = [side(style, strength, Branch.POSITIVE)]
    if neutral is not None:
        loras.append(side(neutral, neutral_strength, Branch.NEGATIVE))
    return attach(model, *loras)


def describe(model: ModelPatcher, cfg: float | None = None) -> str:
    """One line for the node: which live LoRA acts on which side, and a warning if `cfg` is 1."""
    parts = [f"{live.branch.value if live.branch else 'both sides'}: {live.fit}" for live in attached(model)]
    if has_no_negative_side(cfg):
        parts.append(NO_NEGATIVE_SIDE)
    return "; ".join(parts)


def has_no_negative_side(cfg: float | None) -> bool:
    """Whether the host leaves the negative side out at this cfg; None: cfg is not known here."""
    return cfg is not None and math.isclose(cfg, 1.0)
