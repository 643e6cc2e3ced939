"""The demo world's backbone: Z-Image's network at width 256, with six blocks."""

from __future__ import annotations

from .lumina2 import LUMINA2
from .table import BaseModel

MODELS = (
    BaseModel(
        id="i2l-tiny",
        title="the tiny demo model of ComfyUI-i2L",
        architecture=LUMINA2,
        sizes={"dim": 256, "layers": 6},
        other_sizes={"mlp": 768, "time": 256, "text": 128, "refiners": 1, "context": 1},
        manager_name="ComfyUI-i2L tiny",
        modelspec_architecture="i2l-tiny",
        implementation="https://github.com/comfyanonymous/ComfyUI",
    ),
)
