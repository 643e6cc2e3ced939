"""Where networks are kept and where they compute: what encoders and predictors ask of ComfyUI, or of a plain device."""

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
        """What to compute in, for weights that a file stores as `stored`."""
        ...

    def hold(self, network: nn.Module, whole: bool = False) -> Any:
        """A handle on a network; `whole`: it is moved by its own `to`, all of it at once."""
        ...

    def load(self, held: Any, needed: int, whole: bool = False) -> None:
        """Bring a network to `device`, with `needed` bytes free beside it; `whole`: with all of its weights."""
        ...

    def put_away(self, held: Any) -> bool:
        """Take a network off the device; False when it was dropped from memory altogether."""
        ...

    def free(self, needed: int) -> None:
        """Make room for `needed` bytes on the device."""
        ...

    def total_memory(self) -> int:
        """Bytes of the device, used or not."""
        ...

    def check_cancelled(self) -> None:
        """Raise when the user has cancelled."""
        ...
