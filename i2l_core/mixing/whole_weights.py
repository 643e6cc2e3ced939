"""A LoRA on rows of fused weights as one on whole weights: how many rows a weight has, and the step itself."""

from __future__ import annotations

import re

from ..base_models import find_model
from ..lora import LoRA, Target, to_whole_weights


def in_whole_weights(lora: LoRA) -> LoRA:
    """One layer per weight, exact: what files and core nodes understand."""
    return to_whole_weights(lora, row_widths(lora))


def row_widths(lora: LoRA) -> dict[str, int]:
    """Rows of each weight that the LoRA has rows of.

    From the architecture of its base model; else the rows are taken to reach the end of the weight.
    """
    widths: dict[str, int] = {}
    for target in lora.layers:
        if target.rows is not None:
            end = sum(target.rows)
            widths[target.weight] = max(widths.get(target.weight, 0), end, _width(target, lora.base_model))
    return widths


def _width(target: Target, base_model: str) -> int:
    """Rows of the whole weight by the architecture, where `target` is one of its equal parts; or nothing."""
    model = find_model(base_model)
    assert target.rows is not None
    start, length = target.rows
    for rule in model.architecture.rules if model else ():
        pattern = re.escape(rule.weight).replace(re.escape("{}"), r"\d+")
        if rule.part is not None and start == rule.part[0] * length and re.fullmatch(pattern, target.weight):
            return length * rule.part[1]
    return 0
