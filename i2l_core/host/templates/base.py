"""What templates have in common: the values of I2L_TEMPLATE and I2L_TEMPLATE_INPUTS sockets, and what is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import comfy.model_management
from PIL import Image

from ...errors import I2LError
from ...kv_caches.cache import KVCache
from ...lora import LoRA
from ...predictors.template.inputs import Input, NoInput

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True, eq=False)
class Made:
    """What a template made of its inputs; what it does not make is None.

    `positive`, `negative`: for the sides of CFG, the same object where the inputs are equal. `lora`, `neutral`: LoRAs
    for the sides. `picture`, `mask`: PIL, where a program wants the sampling to start from a picture and to draw only
    inside the mask. `note`: what was left out, for the artist.
    """

    positive: KVCache | None = None
    negative: KVCache | None = None
    lora: LoRA | None = None
    neutral: LoRA | None = None
    picture: Image.Image | None = None
    mask: Image.Image | None = None
    note: str = ""


class Template(ABC):
    """A template that was opened."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the folder, or of the file without its extension."""

    @abstractmethod
    def describe(self) -> str:
        """A line or two for people: the kind, what it takes, its size."""

    @abstractmethod
    def get_models(self) -> list[Any]:
        """Its model patchers. ComfyUI calls this name to learn what the running prompt needs."""

    @abstractmethod
    def check(self, given: Input) -> str:
        """What it will use, in one line for people. Raises I2LError for inputs that it does not take."""

    @abstractmethod
    def make(self, given: Input, progress: Progress) -> Made:
        """Raises I2LError as `check` does, and the exception of the host when the user cancels."""


@dataclass(frozen=True, eq=False)
class TemplateInputs:
    """A template and what it is given. `about`: both, in one line."""

    template: Template
    given: Input
    about: str

    def __str__(self) -> str:
        return self.about

    @cached_property
    def _made(self) -> list[Made]:
        return []

    def make(self, progress: Progress) -> Made:
        """What the template makes of it: once, and again only after an error.

        Raises I2LError as the template does, and when the memory is too little; the template is unloaded then.
        """
        if not self._made:
            try:
                self._made.append(self.template.make(self.given, progress))
            except comfy.model_management.OOM_EXCEPTION as error:
                for model in self.get_models():
                    comfy.model_management.unload_model_and_clones(model)
                raise I2LError(
                    f"{self.template.name}: there is not enough memory to run it; use a smaller picture, or close what "
                    "else uses the GPU"
                ) from error
        return self._made[0]

    def get_models(self) -> list[Any]:
        return self.template.get_models()


def inputs_for(template: Template, given: Input) -> TemplateInputs:
    """Raises I2LError for inputs that the template does not take."""
    return TemplateInputs(template, given, f"{template.name}: {template.check(given)}")


def with_inputs(value: TemplateInputs | Template) -> TemplateInputs:
    """A template alone stands for one that takes nothing."""
    return value if isinstance(value, TemplateInputs) else inputs_for(value, NoInput())
