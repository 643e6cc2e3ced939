"""The encoders of version 1, loaded to the device only while they encode pictures.

Each is unloaded before the next is loaded, so the peak memory is that of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..device_memory import DeviceMemory
from ..errors import I2LError
from ..references import Reference
from .casting import FLOAT8
from .files import EncoderFile
from .v1 import DINOV3, PooledConfig, load_pooled

HEADROOM = 1.2  # memory of a device over the weights that are to fit on it

Look = Callable[[Reference], Tensor]  # at the whole picture, without its mask; the result is on the CPU


class PictureEncoder(Protocol):
    """`id`: identifies the results, for caches. `ready()`: a context with the function that encodes a picture."""

    @property
    def id(self) -> str: ...

    def ready(self) -> AbstractContextManager[Look]: ...


@dataclass(eq=False)
class FileEncoder:
    """An encoder file, read when it is first needed. A picture gives (width,) in `dtype`."""

    file: EncoderFile
    memory: DeviceMemory
    dtype: torch.dtype  # dtype of the computation
    stored: torch.dtype  # dtype in which the weights of its Linears are stored
    held: Any = field(default=None, init=False)  # its handle, while it is in memory
    _encoder: Any = field(default=None, init=False)

    @property
    def id(self) -> str:
        return f"{self.file.id} {self.dtype} {self.stored}"

    @contextmanager
    def ready(self) -> Iterator[Look]:
        memory = self.memory
        if self.held is None:
            self._encoder = load_pooled(self.file.path, self.dtype, memory.operations, self.stored)
            self.held = memory.hold(self._encoder)
        encoder = self._encoder

        def look(picture: Reference) -> Tensor:
            memory.check_cancelled()
            pixels = encoder.preprocess(picture.pixels)[None].to(memory.device)
            return finite(encoder(pixels)[0], self.file.path.name)

        try:
            memory.load(self.held, pooled_memory(self.file.config, self.dtype))
            yield look
        finally:
            if not memory.put_away(self.held):
                self.held = self._encoder = None


def file_encoder(
    file: EncoderFile, memory: DeviceMemory, stored: torch.dtype, float8: bool | None = None
) -> FileEncoder:
    """`stored`: the dtype that the predictor's file has. `float8`: keep DINOv3 in 8 bits; None: where the device is
    too small for it in 16.

    The size of the device decides, not what is free at the moment: the same pictures give the same LoRA.
    """
    dtype = memory.dtype(stored)
    if float8 is None:
        float8 = memory.total_memory() < HEADROOM * file.config.weights * torch.bfloat16.itemsize
    if not memory.casts:
        return FileEncoder(file, memory, dtype, dtype)
    small = float8 and file.config.kind == DINOV3
    return FileEncoder(file, memory, dtype, FLOAT8 if small else torch.bfloat16)


def pooled_memory(config: PooledConfig, dtype: torch.dtype) -> int:
    """Bytes to encode one picture, besides the weights; weights are cast one at a time."""
    states = config.tokens * (12 * config.width + 3 * config.mlp)
    return (states + 2 * config.width * config.mlp) * dtype.itemsize


def finite(seen: Tensor, name: str) -> Tensor:
    """The result of an encoder on the CPU. Raises I2LError naming the encoder if it is not finite."""
    if not torch.isfinite(seen).all():
        raise I2LError(f"{name} gave NaN or infinite values for a reference; the file may be damaged")
    return seen.cpu()
