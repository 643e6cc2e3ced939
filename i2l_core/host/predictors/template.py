"""Diffusion Templates on the host: what their program predicts, under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import nn

from ...base_models import find_model
from ...checks import listed
from ...lora import LoRA
from ...lora_files.tensors import from_state_dict
from ...predictors.published import published
from ...predictors.template.pictures import grays_like, pictures_of
from ...predictors.template.read import read_template
from ...predictors.template.run import LoadedTemplate, load_template
from ...references import Reference, gray, with_positive_weight
from ..folders import predictor_roots
from .base import HostPredictor, Predicted, Progress

MAX_NEUTRALS = 4  # neutral LoRAs that a predictor keeps, the newest

Sizes = tuple[tuple[int, int], ...]  # of the pictures, in order: all that a neutral LoRA depends on


@dataclass(frozen=True, eq=False)
class TemplatePredictor(HostPredictor):
    """A template whose program has run. `neutrals`: sizes of pictures -> the LoRA of gray ones of these sizes."""

    loaded: LoadedTemplate
    patcher: ModelPatcher | None  # None: the program's network is no module, and manages its memory itself
    neutrals: dict[Sizes, LoRA] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.loaded.template.name

    def describe(self) -> str:
        return f"{self.loaded.template.describe()}\n{self._base_model()}"

    def get_models(self) -> list[ModelPatcher]:
        return [] if self.patcher is None else [self.patcher]

    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> Predicted:
        """A weight is how often a picture is given; what a mask hides gets the mean colour of the rest.

        The user may cancel between the two predictions, not while the program runs.
        """
        report = progress or (lambda done, of: None)
        used = with_positive_weight(references)
        pictures = pictures_of(used)
        self._load(pictures)
        report(1, 3)
        lora, note = self._predict(pictures, used)
        report(2, 3)
        sizes = tuple(picture.size for picture in pictures)
        neutral = self.neutrals.get(sizes)
        if neutral is None:
            neutral, _ = self._predict(grays_like(pictures), [gray(one) for one in used])
            self._keep(sizes, neutral)
        report(3, 3)
        return Predicted(lora, neutral, note)

    def _load(self, pictures: Sequence[Image.Image]) -> None:
        """Nobody knows what the program needs beside its weights: room for the pictures, as floats and resized, on
        top of what the host always keeps free."""
        if self.patcher is None:
            return
        needed = sum(picture.width * picture.height for picture in pictures) * 3 * 4 * 3
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed, force_full_load=True)

    def _predict(self, pictures: list[Image.Image], references: Sequence[Reference]) -> tuple[LoRA, str]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        tensors, others = self.loaded.predict(pictures)
        hashes = tuple(reference.hash for reference in references)
        source = f"the lora of the Diffusion Template {self.name}"
        lora = from_state_dict(tensors, predictor=self.name, references=hashes, source=source)
        notes = []
        if others:
            notes.append(f"not supported yet, left out: {listed(others)}")
        if not lora.base_model:
            notes.append("for a base model that is not known")
        return lora, "\n".join(notes)

    def _keep(self, sizes: Sizes, neutral: LoRA) -> None:
        while len(self.neutrals) >= MAX_NEUTRALS:
            del self.neutrals[next(iter(self.neutrals))]
        self.neutrals[sizes] = neutral

    def _base_model(self) -> str:
        """From its LoRAs once there is one; until then the name of a published folder is the only hint."""
        for lora in self.neutrals.values():
            model = find_model(lora.base_model)
            title = f"for {model.title} ({model.id})" if model else "for a base model that is not known"
            return f"{title}, rank {lora.rank}, {lora.n_layers} layers"
        known = published(self.name)
        model = find_model(known.base_model) if known else None
        hint = f"; by its name, {model.title}" if model else ""
        return f"which base model it is for, its first prediction shows{hint}"


class _Held(nn.Module):
    """A network of unknown making, for the host to manage.

    The host writes attributes on what it manages, which the network might mind; and it moves it by `to`, which the
    interface lets a network do in its own way.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def to(self, *args: Any, **kwargs: Any) -> _Held:
        self.network.to(*args, **kwargs)
        return self


def load_template_predictor(folder: Path, allow_code: bool = False) -> TemplatePredictor:
    """Run the program of a template and hand its network to the host.

    Raises I2LError as `read_template` and `load_template` do; without both permissions nothing of it is run.
    """
    device = comfy.model_management.get_torch_device()
    dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    loaded = load_template(read_template(folder, predictor_roots()), dtype, allow_code)
    patcher = None
    if isinstance(loaded.model, nn.Module):
        # the class that moves a module as a whole: the other one would go around its `to`
        patcher = comfy.model_patcher.ModelPatcher(
            _Held(loaded.model),
            load_device=device,
            offload_device=comfy.model_management.unet_offload_device(),
        )
    elif hasattr(loaded.model, "to"):
        loaded.model.to(device=device)
    return TemplatePredictor(loaded, patcher)
