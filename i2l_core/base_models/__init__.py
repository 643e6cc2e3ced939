"""The base models that are known: their names, and by what sizes they are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import I2LError
from .flux2 import FLUX2
from .hidream_o1 import HIDREAM_O1
from .lumina2 import LUMINA2
from .qwen_image import QWEN_IMAGE
from .table import AdaptedLayer, Architecture, LayerRule, Weights

__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "AdaptedLayer",
    "Architecture",
    "BaseModel",
    "LayerRule",
    "Weights",
    "find_model",
    "recognise",
]


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model that predictors and LoRAs are made for.

    `sizes` tells it from the other models of its architecture; `other_sizes` are the rest, also of parts that only some
    of its releases have. The last three are how other tools call it in LoRA files: Civitai's name, which LoRA
    managers show; modelspec_architecture; where the model's own code is.
    """

    id: str
    title: str
    architecture: Architecture
    sizes: Mapping[str, int]
    other_sizes: Mapping[str, int]
    manager_name: str = ""
    modelspec_architecture: str = ""
    implementation: str = ""

    def weights(self) -> Weights:
        """The weights of all its layers, for when no model is loaded."""
        return self.architecture.weights({**self.sizes, **self.other_sizes})

    def matches(self, weights: Weights) -> bool:
        if not self.architecture.matches(weights):
            return False
        found = self.architecture.read_sizes(weights)
        return all(found[name] == size for name, size in self.sizes.items())


ARCHITECTURES: tuple[Architecture, ...] = (LUMINA2, FLUX2, HIDREAM_O1, QWEN_IMAGE)

_Z_IMAGE_CODE = "https://github.com/Tongyi-MAI/Z-Image"
_FLUX2_CODE = "https://github.com/black-forest-labs/flux2"

MODELS: tuple[BaseModel, ...] = (
    BaseModel(
        id="z-image",
        title="Z-Image",
        architecture=LUMINA2,
        sizes={"dim": 3840, "layers": 30},
        other_sizes={
            "mlp": 10240,
            "time": 1024,
            "text": 2560,
            "refiners": 2,
            "context": 2,
            "eyes": 2,  # these two: Omni-Base
            "siglip": 1152,
        },
        manager_name="ZImageBase",
        modelspec_architecture="Z-Image",
        implementation=_Z_IMAGE_CODE,
    ),
    BaseModel(
        id="flux2-klein-4b",
        title="FLUX.2 klein 4B",
        architecture=FLUX2,
        sizes={"hidden": 3072, "double": 5, "single": 20},
        other_sizes={"text": 7680},
        manager_name="Flux.2 Klein 4B-base",
        modelspec_architecture="Flux.2-klein-4b",
        implementation=_FLUX2_CODE,
    ),
    BaseModel(
        id="flux2-klein-9b",
        title="FLUX.2 klein 9B",
        architecture=FLUX2,
        sizes={"hidden": 4096, "double": 8, "single": 24},
        other_sizes={"text": 12288},
        manager_name="Flux.2 Klein 9B-base",
        modelspec_architecture="Flux.2-klein-9b",
        implementation=_FLUX2_CODE,
    ),
    BaseModel(
        id="flux2-dev",
        title="FLUX.2 dev",
        architecture=FLUX2,
        sizes={"hidden": 6144, "double": 8, "single": 48},
        other_sizes={"text": 15360, "guidance": 1},
        manager_name="Flux.2 D",
        modelspec_architecture="Flux.2-dev",
        implementation=_FLUX2_CODE,
    ),
    BaseModel(
        id="hidream-o1",
        title="HiDream-O1",
        architecture=HIDREAM_O1,
        sizes={"hidden": 4096, "layers": 36, "eyes": 27},
        other_sizes={
            "query": 4096,
            "key": 1024,
            "mlp": 12288,
            "eye": 1152,
            "eye_mlp": 4304,
            "bottleneck": 1024,
        },
        manager_name="HiDream-O1",
        modelspec_architecture="HiDream-O1",
        implementation="https://github.com/HiDream-ai/HiDream-O1-Image",
    ),
    BaseModel(
        id="qwen-image",
        title="Qwen-Image",
        architecture=QWEN_IMAGE,
        sizes={"hidden": 3072, "layers": 60, "text": 3584},
        other_sizes={},
        manager_name="Qwen",
        modelspec_architecture="Qwen-Image",
        implementation="https://github.com/QwenLM/Qwen-Image",
    ),
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


def find_model(id: str) -> BaseModel | None:
    """The known base model of this id, or None."""
    return next((model for model in MODELS if model.id == id), None)


def recognise(weights: Weights) -> BaseModel:
    """Which base model these weights are, from their names and shapes.

    `weights`: parameter name in the diffusion model -> shape. Raises I2LError listing the known models.
    """
    for model in MODELS:
        if model.matches(weights):
            return model
    known = ", ".join(f"{model.title} ({model.id})" for model in MODELS)
    raise I2LError(f"this MODEL is not a known base model: {_describe(weights)}. Known are: {known}")


def _describe(weights: Weights) -> str:
    for architecture in ARCHITECTURES:
        if architecture.matches(weights):
            sizes = ", ".join(
                f"{name} {size}" for name, size in architecture.read_sizes(weights).items() if size
            )
            return f"it is of the {architecture.title}, but its sizes ({sizes}) are of no model in the list"
    names = ", ".join(sorted(weights)[:3])
    return f"its {len(weights)} weights ({names}, ...) are of another network"
