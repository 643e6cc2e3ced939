"""The known base models: one file per architecture holds all facts about it.

To add one: write its file, and add it to `_FILES`.
"""

from __future__ import annotations

from ..checks import shown
from ..errors import I2LError
from . import demo, flux2, hidream_o1, lumina2, qwen_image
from .others import other_model
from .table import AdaptedLayer, Architecture, BaseModel, LayerRule, Weights

__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "AdaptedLayer",
    "Architecture",
    "BaseModel",
    "LayerRule",
    "Weights",
    "architecture_of_network",
    "find_model",
    "other_model",
    "recognise",
    "title_of",
]

_FILES = (lumina2, flux2, hidream_o1, qwen_image, demo)

MODELS: tuple[BaseModel, ...] = tuple(model for file in _FILES for model in file.MODELS)
ARCHITECTURES: tuple[Architecture, ...] = tuple(dict.fromkeys(model.architecture for model in MODELS))


def find_model(id: str) -> BaseModel | None:
    """The known base model of this id, or None."""
    return next((model for model in MODELS if model.id == id), None)


def title_of(id: str) -> str:
    """The title and id of a base model for messages: "Z-Image (z-image)"."""
    model = find_model(id)
    return f"{model.title} ({id})" if model else f"a base model this version does not know ({shown(id)})"


def architecture_of_network(network: object) -> Architecture | None:
    """The architecture of a network of the host, by its class and whatever its sizes; None if unknown."""
    return next((one for one in ARCHITECTURES if one.network == type(network).__name__), None)


def recognise(weights: Weights) -> BaseModel:
    """Recognise the base model from the names and shapes of its weights.

    `weights`: parameter name in the diffusion model -> shape. Only first dimensions are compared, because
    packed weights keep only those. Raises I2LError that lists the known models.
    """
    for model in MODELS:
        if model.matches(weights):
            return model
    known = ", ".join(f"{model.title} ({model.id})" for model in MODELS)
    raise I2LError(f"this MODEL is not a known base model: {_describe(weights)}. Known: {known}")


def _describe(weights: Weights) -> str:
    if other := other_model(weights):
        return f"it is {other.title}, for which these LoRAs are not made"
    for architecture in ARCHITECTURES:
        if architecture.matches(weights):
            sizes = ", ".join(
                f"{name} {size}" for name, size in architecture.read_sizes(weights).items() if size
            )
            return f"it is of the {architecture.title}, but its sizes ({sizes}) are of no model in the list"
    names = ", ".join(sorted(weights)[:3])
    return f"its {len(weights)} weights ({names}, ...) are of another network"
