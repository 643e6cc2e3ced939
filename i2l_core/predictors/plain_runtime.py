"""A runtime without ComfyUI: everything stays on one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..encoders import peek_pooled
from ..encoders.embeddings import Embeddings
from ..encoders.files import EncoderFile
from ..errors import I2LError
from ..files.atomic import SUFFIX


@dataclass
class PlainRuntime:
    """A `Runtime`. `given_dtype` None: as the file stores it, but fp32 on a CPU and bf16 on a GPU for files whose
    encoder comes with them. `encoder_places`: files, or folders that hold image encoders of version 1."""

    device: torch.device
    given_dtype: torch.dtype | None = None
    encoder_places: Sequence[Path] = ()
    embeddings: Embeddings = field(default_factory=Embeddings)
    encoder_hint: str = "say with --encoders where they are"
    runs_programs: bool = False
    operations: Any = nn
    casts: bool = False

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        return self.given_dtype or stored

    def hold(self, network: nn.Module, whole: bool = False) -> nn.Module:
        return network

    def load(self, held: nn.Module, needed: int, whole: bool = False) -> None:
        held.to(self.device)

    def put_away(self, held: nn.Module) -> bool:
        return False  # the next encoder needs the room

    def free(self, needed: int) -> None:
        pass

    def total_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return 1 << 62

    def check_cancelled(self) -> None:
        pass

    def encoder_files(self) -> Iterator[EncoderFile]:
        for place in self.encoder_places:
            folder = sorted([*place.glob(f"*{SUFFIX}"), *place.glob(f"*/*{SUFFIX}")])
            for path in folder if place.is_dir() else [place]:
                config = peek_pooled(path)
                if config is not None:
                    yield EncoderFile(path, config, str(path))

    def clip_states(self, clip: Any, residual: Any, dtype: torch.dtype) -> Any:
        raise I2LError("the text encoder of Qwen-Image is ComfyUI's: predict with it there")

    def template_roots(self) -> Sequence[Path]:
        return ()
