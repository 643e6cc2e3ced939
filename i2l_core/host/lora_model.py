"""LoRAs on ComfyUI's own LORA_MODEL sockets: a dict of tensors under names that the host maps.

Core nodes (Load LoRA Model, Save LoRA Weights) read the tensors; our nodes read the value they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import I2LError
from ..layouts import find_model
from ..lora import LoRA, Target, fuse_rows
from ..lora_file import from_state_dict, to_state_dict


class PredictedLoRA(dict[str, Tensor]):
    """The tensors of `lora`, one pair per weight, on the CPU. `lora` itself keeps rows of fused weights.

    `neutral`: it was predicted from gray pictures.
    """

    def __init__(self, lora: LoRA, neutral: bool = False) -> None:
        super().__init__(to_state_dict(fused(lora)))
        self.lora = lora
        self.neutral = neutral


def lora_of(value: Any) -> LoRA:
    """The LoRA on a socket, of ours or of a core node. Raises I2LError when it is no plain LoRA."""
    if isinstance(value, PredictedLoRA):
        return value.lora
    if not isinstance(value, Mapping):
        raise I2LError(f"lora: expected a LORA_MODEL, a dict of tensors, got {type(value).__name__}")
    return from_state_dict(value, source="the LORA_MODEL")


def fused(lora: LoRA) -> LoRA:
    """One layer per weight, exact: what files and core nodes understand."""
    return fuse_rows(lora, _widths(lora))


def _widths(lora: LoRA) -> dict[str, int]:
    """Rows of each weight that the LoRA has rows of.

    From the layout of its base model; else the rows are taken to reach the end of the weight.
    """
    widths: dict[str, int] = {}
    for target in lora.layers:
        if target.rows is not None:
            end = sum(target.rows)
            widths[target.weight] = max(widths.get(target.weight, 0), end, _width(target, lora.base_model))
    return widths


def _width(target: Target, base_model: str) -> int:
    """Rows of the whole weight by the layout, where `target` is one of its equal parts; or nothing."""
    model = find_model(base_model)
    assert target.rows is not None
    start, length = target.rows
    for line in model.layout.lines if model else ():
        pattern = re.escape(line.weight).replace(re.escape("{}"), r"\d+")
        if line.part is not None and start == line.part[0] * length and re.fullmatch(pattern, target.weight):
            return length * line.part[1]
    return 0
