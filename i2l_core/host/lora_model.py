"""Values of LORA_MODEL sockets: a dict of tensors under names that ComfyUI maps, with our LoRA attached.

Core nodes (Load LoRA Model, Save LoRA Weights) read the tensors; our nodes read `lora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..base_models import Architecture
from ..errors import I2LError, reading
from ..lora import LoRA
from ..lora_files.tensors import from_state_dict, to_state_dict
from ..mixing.whole_weights import in_whole_weights
from .patch import Fit, architecture_of, fitting


class PredictedLoRA(dict[str, Tensor]):
    """The tensors of `lora`, one pair per weight, on the CPU. `lora` itself keeps rows of fused weights.

    `neutral`: it was predicted from gray pictures.
    """

    def __init__(self, lora: LoRA, neutral: bool = False) -> None:
        super().__init__(to_state_dict(in_whole_weights(lora)))
        self.lora = lora
        self.neutral = neutral


def lora_of(value: Any, architecture: Architecture | None = None) -> LoRA:
    """The LoRA on a socket, of ours or of a core node; `architecture`: of the model it goes to, where that is known.

    Raises I2LError when it is no plain LoRA (`OtherKind`) or names of several models fit.
    """
    if isinstance(value, PredictedLoRA):
        return value.lora
    if not isinstance(value, Mapping):
        raise I2LError(f"lora: expected a LORA_MODEL, a dict of tensors, got {type(value).__name__}")
    with reading("the LORA_MODEL", "it cannot be read", "connect another LoRA"):
        return from_state_dict(value, source="the LORA_MODEL", architecture=architecture)


def fit_lora_model(value: Any, model: ModelPatcher, partial: bool = False, cure: str = "") -> Fit:
    """A LORA_MODEL read and fitted to a MODEL, once: see `lora_of` and `patch.fitting` for what raises I2LError."""
    return fitting(lora_of(value, architecture_of(model)), model, partial, cure)
