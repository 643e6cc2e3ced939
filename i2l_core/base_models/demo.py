"""The demo world's models: Z-Image's network at width 256 with six blocks, and FLUX.2's at width 160 with seven."""

from __future__ import annotations

from .flux2 import FLUX2
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
    BaseModel(
        id="i2l-tiny-flux2",
        title="the tiny demo FLUX.2 of ComfyUI-i2L",
        architecture=FLUX2,
        sizes={"hidden": 160, "double": 1, "single": 6},
        other_sizes={"text": 128},
        manager_name="ComfyUI-i2L tiny FLUX.2",
        modelspec_architecture="i2l-tiny-flux2",
        implementation="https://github.com/comfyanonymous/ComfyUI",
    ),
)
