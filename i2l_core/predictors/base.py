"""What every predictor is, whatever its family: reference pictures in, LoRAs out; and where it runs."""

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
    """The LoRA of the references' style, and that of as many gray pictures: what is left without a style.

    The second is for the negative side of guidance (arXiv 2606.13809, section 3.4). `note`: for the artist.
    """

    lora: LoRA
    neutral: LoRA
    note: str = ""


class Predictor(ABC):
    """A predictor that is loaded, ready to predict. The value of an I2L_PREDICTOR socket."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the file, without its extension, or of the folder."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, for people: family, base model, rank, encoders, size. A few lines of text."""

    @abstractmethod
    def get_models(self) -> list[Any]:
        """What its runtime holds for it. ComfyUI looks for this name to learn what the running prompt needs."""

    def with_clip(self, clip: Any) -> Predictor:
        """A copy of this predictor that may use `clip`, a CLIP or None; families without one return themselves."""
        return self

    @abstractmethod
    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> StyleAndNeutral:
        """One LoRA from all references, on the CPU. Deterministic: no seed.

        Weights and masks of the references count as `Reference` says. Stops with the runtime's own exception when
        the user cancels. Raises I2LError when no reference has a weight, when the predictor cannot do what is
        asked, and when the prediction is not finite.
        """


class Runtime(DeviceMemory, Protocol):
    """Where predictors run: under ComfyUI's memory management, or on one device without it (`plain_runtime`)."""

    embeddings: Embeddings  # of the pictures that encoders have seen
    encoder_hint: str  # how to say where image encoders are; empty: the folders of ComfyUI are searched
    runs_programs: bool  # whether programs of Diffusion Templates can run here, if they are allowed to

    def encoder_files(self) -> Iterable[EncoderFile]:
        """The image encoders of version 1 that are at hand."""
        ...

    def clip_states(self, clip: Any, residual: Any, dtype: torch.dtype) -> Any:
        """A PictureEncoder over a CLIP. Raises I2LError where there is none."""
        ...

    def template_roots(self) -> Sequence[Path]:
        """The folders that Diffusion Templates are in."""
        ...


@dataclass(frozen=True)
class Options:
    """What a user may set when a predictor is loaded.

    `allow_code`: the program of a Diffusion Template may run; no file needs that.
    `float8`: store large image encoders in 8 bits; None: where the device is too small for 16.
    """

    allow_code: bool = False
    float8: bool | None = None


@dataclass(frozen=True)
class Source:
    """A file or folder, before anything of it is loaded. `header`: of a file; None: it is a folder."""

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
    """The newest neutral LoRAs of a predictor, by what they depend on."""

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
    """`lora` on the CPU. Raises I2LError, naming the predictor, when it is not finite."""
    lora = lora.to("cpu")
    try:
        lora.check_finite()
    except I2LError as error:
        raise I2LError(f"the predictor {name} failed on these references: {error}") from error
    return lora
