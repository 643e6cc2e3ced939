"""The protocols of predictors and of the runtimes they run on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..device_memory import DeviceMemory
from ..encoders.embeddings import Embeddings
from ..encoders.files import EncoderFile
from ..errors import I2LError
from ..files.safetensors import FileHeader
from ..lora import LoRA
from ..references import Reference

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class StyleAndNeutral:
    """The LoRA predicted from the references, and the neutral LoRA predicted from as many gray pictures.

    The neutral LoRA is for the negative side of CFG (arXiv 2606.13809, section 3.4). `note`: a hint for the artist.
    """

    lora: LoRA
    neutral: LoRA
    note: str = ""


class Predictor(ABC):
    """A loaded predictor. The value of an I2L_PREDICTOR socket."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the file without its extension, or of the folder."""

    @abstractmethod
    def describe(self) -> str:
        """A few lines of text for people: family, base model, rank, encoders, size."""

    @abstractmethod
    def get_models(self) -> list[Any]:
        """The model patchers of this predictor. ComfyUI calls this name to learn what the running prompt needs."""

    def with_clip(self, clip: Any) -> Predictor:
        """A copy of this predictor that may use `clip`, a CLIP or None; families without one return themselves."""
        return self

    @abstractmethod
    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> StyleAndNeutral:
        """Predict one LoRA from all references. Deterministic; the result is on the CPU.

        Weights and masks: see `Reference`. Raises the exception of the runtime if the user cancels. Raises I2LError if
        all weights are 0, if the predictor does not support the input, or if the prediction is not finite.
        """


class Runtime(DeviceMemory, Protocol):
    """Where predictors run: under ComfyUI's memory management, or on one device without it (`plain_runtime`)."""

    embeddings: Embeddings  # cached embeddings of pictures
    encoder_hint: str  # advice on naming image encoders; empty: the folders of ComfyUI are searched
    runs_programs: bool  # whether programs of Diffusion Templates can run here, if they are allowed to

    def encoder_files(self) -> Iterable[EncoderFile]:
        """The image encoder files of version 1 that can be found."""
        ...

    def clip_states(self, clip: Any, residual: Any, dtype: torch.dtype) -> Any:
        """A PictureEncoder that uses a CLIP. Raises I2LError if the runtime has none."""
        ...

    def template_roots(self) -> Sequence[Path]:
        """The folders that may hold Diffusion Templates."""
        ...


@dataclass(frozen=True)
class Options:
    """Options for loading a predictor.

    `allow_code`: the program of a Diffusion Template may run; no file needs that.
    `float8`: store large image encoders in 8 bits; None: where the device is too small for 16.
    """

    allow_code: bool = False
    float8: bool | None = None


@dataclass(frozen=True)
class Source:
    """A file or folder that is not loaded yet. `header`: of a file; None for a folder."""

    path: Path
    header: FileHeader | None


@dataclass(frozen=True)
class Family:
    """A kind of predictor. To add one: write its module with a `Family`, and add that to `predictors.FAMILIES`.

    `recognise`: whether a source is of this family, from its names and metadata alone.
    `describe`: (what it is, what to do with it), one line each. Raises I2LError for a folder that is no template.
    `load`: the predictor. Raises I2LError naming the file and what is wrong with it.
    """

    name: str
    recognise: Callable[[Source], bool]
    describe: Callable[[Source], tuple[str, str]]
    load: Callable[[Path, Runtime, Options], Predictor]


class NeutralCache:
    """A cache of the newest neutral LoRAs of a predictor, by the inputs they depend on."""

    def __init__(self, limit: int = 4) -> None:
        self._limit = limit
        self._loras: OrderedDict[Hashable, LoRA] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loras)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._loras

    def get(self, key: Hashable) -> LoRA | None:
        return self._loras.get(key)

    def keep(self, key: Hashable, lora: LoRA) -> LoRA:
        self._loras[key] = lora
        while len(self._loras) > self._limit:
            self._loras.popitem(last=False)
        return lora

    def newest(self) -> LoRA | None:
        return next(reversed(self._loras.values()), None)


def checked_prediction(lora: LoRA, name: str) -> LoRA:
    """The LoRA on the CPU. Raises I2LError naming the predictor if it is not finite."""
    lora = lora.to("cpu")
    try:
        lora.check_finite()
    except I2LError as error:
        raise I2LError(f"the predictor {name} failed on these references: {error}") from error
    return lora
