"""Templates that are recognised by their weights alone; no program of anyone's runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...errors import I2LError
from ...kv_caches.dit import DitTemplate
from ...kv_caches.kinds import StaticTemplate, recognise_template
from ...kv_caches.static import load_cache
from ...kv_caches.value import ValueTemplate
from ...predictors.published import Takes, Value, published_template
from ...predictors.template.inputs import (
    ColourInput,
    Input,
    PictureInput,
    ValueInput,
    described,
)
from ..kv_caches.dit import load_network, run_network
from ..predictors.runtime import comfy_runtime
from .base import Made, Progress, Template
from .pipeline import encode_picture, encode_prompt

_COLOURS = ("r", "g", "b")


@dataclass(frozen=True, eq=False)
class _Native(Template):
    """`title`: the name of the folder, or of the file without its extension. `base_model`: what its caches are for."""

    path: Path
    title: str
    takes: Takes
    base_model: str
    value: Value | None = None  # of a template that is not published, but known

    @property
    def name(self) -> str:
        return self.title

    def get_models(self) -> list[Any]:
        return []

    def check(self, given: Input) -> str:
        return described(self.title, given, self.takes, self.value)


@dataclass(frozen=True, eq=False)
class StaticCache(_Native):
    """A file that is a cache itself, the same on both sides."""

    tokens: int = 0

    def describe(self) -> str:
        return f"static template: {self.tokens} tokens that every block sees\nconnect it to Apply Template"

    def make(self, given: Input, progress: Progress) -> Made:
        self.check(given)
        cache = load_cache(self.path)
        progress(1, 1)
        return Made(cache, cache)


@dataclass(frozen=True, eq=False)
class ValueModel(_Native):
    """A number, or three for a colour."""

    kind: ValueTemplate | None = None

    def describe(self) -> str:
        assert self.kind is not None
        what = "a colour: use Template Colour" if self.takes == "colour" else "a value: use Template Value"
        return f"value template: {self.kind.tokens} tokens in {len(self.kind.blocks)} blocks\nit takes {what}"

    def make(self, given: Input, progress: Progress) -> Made:
        self.check(given)
        assert self.kind is not None
        if isinstance(given, ColourInput):
            numbers = self._in_order(given)
            cache = self.kind.make(numbers, 1000.0, self.title, self.base_model)
            progress(1, 1)
            return Made(cache)
        assert isinstance(given, ValueInput)
        value = given.resolved(self.title, self.value)
        positive = self.kind.make([given.value], value.factor, self.title, self.base_model)
        progress(1, 2)
        same = given.value == value.neutral
        negative = (
            positive if same else self.kind.make([value.neutral], value.factor, self.title, self.base_model)
        )
        progress(2, 2)
        return Made(positive, negative)

    def _in_order(self, colour: ColourInput) -> list[float]:
        """The file's three numbers."""
        assert self.kind is not None
        parts = {"r": colour.red, "g": colour.green, "b": colour.blue}
        return [parts[letter] for letter in _letters(self.kind)]


def _letters(kind: ValueTemplate) -> list[str]:
    """The first letter of the last word of each value's name: how SoftRGB calls its three is inferred."""
    return [name.rpartition(".")[2].rpartition("_")[2][:1].lower() for name in kind.values]


@dataclass(frozen=True, eq=False)
class Network(_Native):
    """A whole FLUX.2 that looks at a picture and a prompt. Its network is read when it is first used."""

    kind: DitTemplate | None = None
    held: dict[int, ModelPatcher] = field(default_factory=dict)  # by the VAE's channels; one at a time

    def describe(self) -> str:
        assert self.kind is not None
        return (
            f"control template: a network of {self.kind.double} + {self.kind.single} blocks, "
            f"{self.path.stat().st_size / 1e6:.0f} MB\nit takes a picture and a prompt: use Template Picture"
        )

    def get_models(self) -> list[Any]:
        return list(self.held.values())

    def check(self, given: Input) -> str:
        said = super().check(given)
        for socket in ("vae", "clip"):
            if getattr(given, socket, None) is None:
                raise I2LError(f"{self.title}: connect a {socket.upper()} to the node that gives its inputs")
        return said

    def make(self, given: Input, progress: Progress) -> Made:
        """One forward with the prompt, one without words; both with the same picture."""
        self.check(given)
        assert self.kind is not None
        assert isinstance(given, PictureInput)
        latent = encode_picture(given.vae, given.picture[..., :3])
        runtime = comfy_runtime()
        dtype = runtime.dtype(torch.float32 if runtime.device.type == "cpu" else torch.bfloat16)
        held = self._network(latent.shape[1], dtype)
        blocks = self.kind.double + self.kind.single
        made = []
        for side, words in enumerate((given.prompt, "")):
            text = encode_prompt(given.clip, words)[0][0]
            made.append(
                run_network(
                    held, self.kind, [latent], text, dtype, self.title, self.base_model,
                    lambda done, of, side=side: progress(side * of + done, 2 * blocks),
                )
            )  # fmt: skip
        return Made(*made)

    def _network(self, channels: int, dtype: torch.dtype) -> ModelPatcher:
        assert self.kind is not None
        if channels not in self.held:
            self.held.clear()
            self.held[channels] = load_network(self.path, self.kind, channels, dtype)
        return self.held[channels]


def native_template(
    path: Path, title: str, base_model: str = "flux2-klein-4b", value: Value | None = None
) -> _Native | None:
    """The template in a safetensors file; None when it is of no known kind, or when its weights do not say all that it
    does: what Inpaint does with its mask, and which of several values is red, green or blue, stands in its program.

    `base_model`, `value`: what its weights do not say, of one that is not published. Raises I2LError naming the file
    when it is damaged, or nearly of a kind.
    """
    kind = recognise_template(path)
    if isinstance(kind, StaticTemplate):
        return StaticCache(path, title, "nothing", base_model, tokens=kind.tokens)
    if isinstance(kind, ValueTemplate):
        if len(kind.values) > 1 and sorted(_letters(kind)) != sorted(_COLOURS):
            return None
        takes: Takes = "value" if len(kind.values) == 1 else "colour"
        return ValueModel(path, title, takes, base_model, value, kind)
    if isinstance(kind, DitTemplate):
        known = published_template(title)
        if known and known.takes != "picture":
            return None
        return Network(path, title, "picture", base_model, kind=kind)
    return None
