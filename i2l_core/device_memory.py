"""The interface through which encoders and predictors use the memory of a device, with or without ComfyUI."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn


class DeviceMemory(Protocol):
    """Implemented over ComfyUI's memory management (host/predictors/runtime.py), and without it (plain_runtime)."""

    @property
    def device(self) -> torch.device:
        """Where networks compute."""
        ...

    @property
    def operations(self) -> ModuleType | Any:
        """Classes of layers, as `torch.nn` or `comfy.ops.manual_cast`."""
        ...

    @property
    def casts(self) -> bool:
        """Whether `operations` cast weights to the dtype of their input, so that weights may be stored smaller."""
        ...

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """The dtype to compute in, for weights that a file stores as `stored`."""
        ...

    def hold(self, network: nn.Module, whole: bool = False) -> Any:
        """A handle on a network. `whole`: the network is moved at once, by its own `to`."""
        ...

    def load(self, held: Any, needed: int, whole: bool = False) -> None:
        """Load a network to `device` and keep `needed` bytes free besides. `whole`: load all of its weights."""
        ...

    def put_away(self, held: Any) -> bool:
        """Unload a network from the device. False if it was dropped from memory entirely."""
        ...

    def free(self, needed: int) -> None:
        """Make room for `needed` bytes on the device."""
        ...

    def total_memory(self) -> int:
        """Total bytes of the device, used or not."""
        ...

    def check_cancelled(self) -> None:
        """Raise the exception of the host if the user has cancelled."""
        ...
