"""What travels on an I2L_PREDICTOR socket, whatever its family: reference pictures in, LoRAs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...lora import LoRA
from ...references import Reference

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class Predicted:
    """The LoRA of the references' style, and that of as many gray pictures: what remains without a style.

    The second is the counterpart for guidance (arXiv 2606.13809, section 3.4). `note`: what the artist should know.
    """

    lora: LoRA
    neutral: LoRA
    note: str = ""


class HostPredictor(ABC):
    """A predictor under ComfyUI's memory management."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the file, without its extension, or of the folder."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, for people: family, base model, rank, encoders, size. A few lines of text."""

    @abstractmethod
    def get_models(self) -> list[ModelPatcher]:
        """All models it may load. The host looks for this name: so it knows what the running prompt needs."""

    def with_clip(self, clip: Any) -> HostPredictor:
        """The same predictor with the user's CLIP, or None, at hand. Most look at pictures without one."""
        return self

    @abstractmethod
    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> Predicted:
        """One LoRA from all references, on the CPU. Deterministic: no seed.

        Weights and masks of the references count as `Reference` says. Stops with the host's own exception when
        the user cancels. Raises I2LError when no reference has a weight, when the predictor cannot do what is
        asked, and when the prediction is not finite.
        """
