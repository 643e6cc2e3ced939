"""Predict with a Diffusion Template, by its program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ...base_models import find_model
from ...checks import listed
from ...errors import I2LError
from ...lora import LoRA
from ...lora_files.tensors import from_state_dict
from ...references import Reference, gray, with_positive_weight
from ..base import Family, NeutralCache, Options, Predictor, Progress, Runtime, Source, StyleAndNeutral
from ..published import published, published_template
from .outputs import Outputs
from .pictures import gray_square, grays_like, pictures_of
from .pipe import Pipe
from .read import PROGRAM, read_template, weight_path
from .run import LoadedTemplate, PipelineNeeded, load_template


@dataclass(frozen=True, eq=False)
class TemplatePredictor(Predictor):
    """A template whose program has run. `held`: the runtime's handle on its network; None: the network is not a
    module, and manages its memory itself."""

    loaded: LoadedTemplate
    runtime: Runtime
    held: Any = None
    # by the sizes of the pictures, in order: all that a neutral LoRA depends on
    neutrals: NeutralCache = field(default_factory=NeutralCache)

    @property
    def name(self) -> str:
        return self.loaded.template.name

    def describe(self) -> str:
        return f"{self.loaded.template.describe()}\n{self._base_model()}"

    def get_models(self) -> list[Any]:
        return [] if self.held is None else [self.held]

    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> StyleAndNeutral:
        """A weight repeats the picture; masked-out parts are filled with the mean colour of the rest.

        The user may cancel between the two predictions, not while the program runs.
        """
        report = progress or (lambda done, of: None)
        references = with_positive_weight(references)
        pictures = pictures_of(references)
        if self._takes_one and len(pictures) != 1:
            raise I2LError(
                f"{self.name} takes one picture, got {len(pictures)}: connect a single one with weight 1"
            )
        self._load(pictures)
        report(1, 3)
        lora, note = self._predict(pictures, references)
        report(2, 3)
        sizes = tuple(picture.size for picture in pictures)
        neutral = self.neutrals.get(sizes)
        if neutral is None:
            grays = [gray_square()] if self._takes_one else grays_like(pictures)
            neutral, _ = self._predict(grays, [gray(one) for one in references])
            self.neutrals.keep(sizes, neutral)
        report(3, 3)
        return StyleAndNeutral(lora, neutral, note)

    def _load(self, pictures: Sequence[Image.Image]) -> None:
        """Nobody knows what the program needs beside its weights: room for the pictures, as floats and resized, on
        top of what the host always keeps free."""
        if self.held is not None:
            needed = sum(picture.width * picture.height for picture in pictures) * 3 * 4 * 3
            self.runtime.load(self.held, needed, whole=True)

    def _predict(self, pictures: list[Image.Image], references: Sequence[Reference]) -> tuple[LoRA, str]:
        self.runtime.check_cancelled()
        image = pictures[0] if self._takes_one else pictures
        tensors, others = self._run({"image": image}).only_lora(self.name)
        hashes = tuple(reference.hash for reference in references)
        source = f"the lora of the Diffusion Template {self.name}"
        lora = from_state_dict(tensors, predictor=self.name, references=hashes, source=source)
        notes = []
        if others:
            hint = " (Load Template gives the kv_cache)" if "kv_cache" in others else ""
            notes.append(f"not a part of the LoRA, left out: {listed(others)}{hint}")
        if not lora.base_model:
            notes.append("for a base model that is not known")
        return lora, "\n".join(notes)

    def _run(self, inputs: dict[str, Any]) -> Outputs:
        """With a stand-in for the pipeline, which DiffSynth always passes; a program that asks for a part which is
        missing in it may still be one that does without a pipeline."""
        pipe = Pipe(self.runtime.device, self.loaded.dtype)
        try:
            return self.loaded.run(inputs, pipe)
        except PipelineNeeded as needed:
            try:
                return self.loaded.run(inputs)
            except I2LError:
                hint = (
                    f"; load it with Load Template, whose inputs take a {needed.socket}"
                    if needed.socket
                    else ""
                )
                raise I2LError(f"{needed}{hint}") from needed

    @property
    def _takes_one(self) -> bool:
        known = published(self.name)
        return known is not None and known.one_picture

    def _base_model(self) -> str:
        """From its LoRAs once there is one; until then the name of a published folder is the only hint."""
        if lora := self.neutrals.newest():
            model = find_model(lora.base_model)
            title = f"for {model.title} ({model.id})" if model else "for a base model that is not known"
            return f"{title}, rank {lora.rank}, {lora.n_layers} layers"
        known = published(self.name)
        model = find_model(known.base_model) if known else None
        hint = f"; by its name, {model.title}" if model else ""
        return f"which base model it is for, its first prediction shows{hint}"


def load_template_predictor(path: Path, runtime: Runtime, options: Options) -> TemplatePredictor:
    """Run the program of a template and hand its network to the runtime.

    Raises I2LError as `read_template` and `load_template` do; without both permissions nothing of it is run.
    """
    if not runtime.runs_programs:
        raise I2LError(
            f"{path} is a folder: expected a predictor file. Diffusion Templates are programs; they run in ComfyUI "
            "only, when that is allowed"
        )
    if published_template(path.name):
        raise I2LError(f"{path.name} is no predictor of LoRAs from pictures: use Load Template")
    dtype = runtime.dtype(torch.bfloat16)
    loaded = load_template(read_template(path, runtime.template_roots()), dtype, options.allow_code)
    if isinstance(loaded.model, nn.Module):
        return TemplatePredictor(loaded, runtime, runtime.hold(loaded.model, whole=True))
    if hasattr(loaded.model, "to"):
        loaded.model.to(device=runtime.device)
    return TemplatePredictor(loaded, runtime)


def _recognise(source: Source) -> bool:
    return source.header is None


def _describe(source: Source) -> tuple[str, str]:
    """Its program is read as text."""
    template = read_template(source.path, [source.path])
    advice = (
        f"put the folder into models/i2l and load it with Load i2L Predictor; its program, {PROGRAM}, runs only where "
        "that is allowed (docs/templates.md)"
    )
    try:
        for name in template.weights or ():
            weight_path(template, name)
    except I2LError as error:
        return f"a Diffusion Template that cannot be used: {error}", "get what is missing"
    return f"a {template.describe()}", advice


TEMPLATE = Family("template", _recognise, _describe, load_template_predictor)
