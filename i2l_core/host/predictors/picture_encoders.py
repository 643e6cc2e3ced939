"""Image encoders under ComfyUI's memory management: on the GPU only while they look at pictures.

One is put away before the next is needed, so together they take no more than the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...encoders import DINOV3, load_pooled
from ...encoders.casting import FLOAT8
from ...errors import I2LError
from ...references import Reference
from ..memory import as_patcher, pooled_memory
from .encoder_files import EncoderFile

HEADROOM = 1.2  # of a card's memory over the weights that are to fit on it

Look = Callable[[Reference], Tensor]  # at the whole picture, without its mask; the result is on the CPU


class PictureEncoder(Protocol):
    """`id`: differs wherever results may differ. `ready()`: what looks at pictures, for as long as it is open."""

    @property
    def id(self) -> str: ...

    def ready(self) -> AbstractContextManager[Look]: ...


@dataclass(eq=False)
class FileEncoder:
    """An encoder file, read when it is first needed. A picture gives (width,) in `dtype`."""

    file: EncoderFile
    dtype: torch.dtype  # what it computes in
    stored: torch.dtype  # what the weights of its Linears are kept in
    patcher: ModelPatcher | None = field(default=None, init=False)  # while it is in memory

    @property
    def id(self) -> str:
        return f"{self.file.id} {self.dtype} {self.stored}"

    @contextmanager
    def ready(self) -> Iterator[Look]:
        patcher = self.patcher = self.patcher or self._read()
        encoder: Any = patcher.model

        def look(picture: Reference) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            pixels = encoder.preprocess(picture.pixels)[None].to(patcher.load_device)
            return finite(encoder(pixels)[0], self.file.path.name)

        try:
            needed = pooled_memory(self.file.config, self.dtype)
            comfy.model_management.load_models_gpu([patcher], memory_required=needed)
            yield look
        finally:
            self._put_away(patcher)

    def _read(self) -> ModelPatcher:
        return as_patcher(load_pooled(self.file.path, self.dtype, comfy.ops.manual_cast, self.stored))

    def _put_away(self, patcher: ModelPatcher) -> None:
        """Off the GPU; and out of memory unless twice its size is free there: then it is read anew next time."""
        if cast(int, comfy.model_management.get_free_memory(torch.device("cpu"))) < 2 * patcher.model_size():
            for (
                parameter
            ) in patcher.model.parameters():  # so that there is nothing to bring back from the GPU
                parameter.data = torch.empty(0, dtype=parameter.dtype)
            self.patcher = None
        comfy.model_management.unload_model_and_clones(patcher)


def file_encoder(file: EncoderFile, float8: bool | None = None) -> FileEncoder:
    """`float8`: keep DINOv3 in 8 bits; None: where the card is too small for it in 16.

    The size of the card decides, not what is free at the moment: the same pictures give the same LoRA.
    """
    device = comfy.model_management.get_torch_device()
    dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    if float8 is None:
        needed = HEADROOM * file.config.weights * torch.bfloat16.itemsize
        has = cast(int, comfy.model_management.get_total_memory(device))
        float8 = device.type == "cuda" and has < needed
    small = float8 and file.config.kind == DINOV3
    return FileEncoder(file, dtype, FLOAT8 if small else torch.bfloat16)


def finite(seen: Tensor, name: str) -> Tensor:
    """What an encoder of this name gave, on the CPU. Raises I2LError when it is no picture's."""
    if not torch.isfinite(seen).all():
        raise I2LError(f"{name} gave NaN or infinite values for a reference; the file may be damaged")
    return seen.cpu()
