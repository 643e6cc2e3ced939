"""Convert a LoRA on rows of fused weights to one on whole weights."""

from __future__ import annotations

import re

from ..base_models import ARCHITECTURES, LayerRule
from ..lora import LoRA, Target, to_whole_weights


def in_whole_weights(lora: LoRA) -> LoRA:
    """The LoRA with one layer per weight, as files and core nodes need it. Raises I2LError for an unknown width."""
    return to_whole_weights(lora, row_widths(lora))


def row_widths(lora: LoRA) -> dict[str, int]:
    """Rows of each weight that the LoRA has rows of: from the tables, or from a layer of the whole weight beside them.

    A weight of unknown width is left out. `to_whole_weights` raises if it needs it; a guess would give a layer that no
    loader applies.
    """
    whole = {target.weight: layer.d_out for target, layer in lora.layers.items() if target.rows is None}
    widths: dict[str, int] = {}
    for target, layer in lora.layers.items():
        if target.rows is not None and target.weight not in widths:
            width = whole.get(target.weight) or _width(target, layer.d_in)
            widths |= {target.weight: width} if width else {}
    return widths


def _width(target: Target, d_in: int) -> int | None:
    """Rows of the whole weight, where `target` is one of its equal parts, or its table says how wide it is."""
    assert target.rows is not None
    start, length = target.rows
    for rule in (rule for one in ARCHITECTURES for rule in one.rules if _is(rule, target.weight)):
        if rule.part is not None and start == rule.part[0] * length:
            return length * rule.part[1]
        if rule.part is None and (width := _by_input(rule, d_in)) and start + length <= width:
            return width
    return None


def _is(rule: LayerRule, weight: str) -> bool:
    return re.fullmatch(re.escape(rule.weight).replace(re.escape("{}"), r"\d+"), weight) is not None


def _by_input(rule: LayerRule, d_in: int) -> int | None:
    """d_out of a layer whose sides are multiples of one size, from d_in: 9*hidden from hidden."""
    sides = [str(side).rpartition("*") for side in rule.size]
    (times_out, _, size_out), (times_in, _, size_in) = sides
    if size_out != size_in or size_out.isdigit() or d_in % int(times_in or 1):
        return None
    return d_in // int(times_in or 1) * int(times_out or 1)
