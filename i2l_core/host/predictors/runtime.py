"""The runtime of predictors under ComfyUI's memory management: their networks are ordinary model patchers.

Loading them frees only as much memory as needed, so a checkpoint stays on the GPU if there is room.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...encoders.embeddings import Embeddings
from ...encoders.files import EncoderFile
from ...predictors import open_predictor
from ...predictors.base import Options, Predictor
from ...predictors.v1.kinds import Residual
from ..folders import predictor_roots
from .encoder_files import encoder_files
from .qwen_states import QwenStates


class ComfyRuntime:
    """A `predictors.base.Runtime` over `comfy.model_management`."""

    encoder_hint = ""
    runs_programs = True

    def __init__(self) -> None:
        self.embeddings = Embeddings()

    @property
    def device(self) -> torch.device:
        return comfy.model_management.get_torch_device()

    @property
    def operations(self) -> ModuleType | Any:
        return comfy.ops.manual_cast

    @property
    def casts(self) -> bool:
        return True

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if comfy.model_management.should_use_bf16(self.device) else torch.float32

    def hold(self, network: nn.Module, whole: bool = False) -> ModelPatcher:
        # looked up now: ComfyUI chooses the class of patcher when it starts
        kind = comfy.model_patcher.ModelPatcher if whole else comfy.model_patcher.CoreModelPatcher
        return kind(
            _Whole(network) if whole else network,
            load_device=self.device,
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def load(self, held: ModelPatcher, needed: int, whole: bool = False) -> None:
        comfy.model_management.load_models_gpu([held], memory_required=needed, force_full_load=whole)

    def put_away(self, held: ModelPatcher) -> bool:
        """Off the GPU; and out of memory unless twice its size is free there: then it is read again next time."""
        kept = cast(int, comfy.model_management.get_free_memory(torch.device("cpu"))) >= 2 * held.model_size()
        if not kept:
            for parameter in held.model.parameters():  # so that nothing is brought back from the GPU
                parameter.data = torch.empty(0, dtype=parameter.dtype)
        comfy.model_management.unload_model_and_clones(held)
        return kept

    def free(self, needed: int) -> None:
        comfy.model_management.free_memory(needed, self.device)

    def total_memory(self) -> int:
        if self.device.type != "cuda":
            return 1 << 62
        return cast(int, comfy.model_management.get_total_memory(self.device))

    def check_cancelled(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def encoder_files(self) -> Iterator[EncoderFile]:
        return encoder_files()

    def clip_states(self, clip: Any, residual: Residual, dtype: torch.dtype) -> QwenStates:
        return QwenStates(clip, residual, dtype)

    def template_roots(self) -> Sequence[Path]:
        return predictor_roots()


class _Whole(nn.Module):
    """A network that the host moves by the network's own `to`.

    The host writes attributes on what it manages, which a network of unknown making might mind.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def to(self, *args: Any, **kwargs: Any) -> _Whole:
        self.network.to(*args, **kwargs)
        return self


@functools.cache
def comfy_runtime() -> ComfyRuntime:
    """The runtime of this server. It caches embeddings, so no picture is encoded twice."""
    return ComfyRuntime()


def load_predictor(path: Path, allow_code: bool = False, float8: bool | None = None) -> Predictor:
    """Read a predictor and hand it to ComfyUI. Raises I2LError as `open_predictor` does."""
    return open_predictor(path, comfy_runtime(), Options(allow_code, float8))
