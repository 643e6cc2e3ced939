"""A disk cache of latents and text embeddings, made by the VAE and text encoder of the base model.

One .safetensors file per entry, named by a hash of all its inputs, so a stale entry is never used. Tensors that fit
into 16 bits without loss, such as the outputs of a 16 bit network, are stored in 16 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import I2LError
from ...files.atomic import replacing

TEXTS, LATENTS = "texts", "latents"


class EncodingCache:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, kind: str, *source: str) -> bool:
        return self._path(kind, source).is_file()

    def get(self, kind: str, *source: str) -> dict[str, Tensor] | None:
        """The cached tensors of this source, floats as float32; None if missing. Raises I2LError for a damaged file."""
        path = self._path(kind, source)
        if not path.is_file():
            return None
        try:
            return {n: t.float() if t.is_floating_point() else t for n, t in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise I2LError(
                f"{path} is damaged ({error}); delete it, it is made again at the next start"
            ) from error

    def put(self, tensors: Mapping[str, Tensor], kind: str, *source: str) -> None:
        """Raises I2LError when a tensor is not finite or the disk refuses."""
        bad = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
        if bad:
            raise I2LError(f"the {kind} of {source[-1][:120]!r} hold NaN or infinite values in {bad[0]}")
        path = self._path(kind, source)
        small = {name: _small(tensor.cpu()).contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file(small, temporary)
        except (OSError, SafetensorError) as error:
            raise I2LError(
                f"cannot write the cache {self._folder}: {error}; check the folder and its space"
            ) from error

    def _path(self, kind: str, source: tuple[str, ...]) -> Path:
        key = hashlib.sha256("\0".join(source).encode()).hexdigest()
        return self._folder / kind / key[:2] / f"{key}.safetensors"


def _small(tensor: Tensor) -> Tensor:
    for dtype in (torch.bfloat16, torch.float16):
        if tensor.dtype == torch.float32 and torch.equal(tensor.to(dtype).float(), tensor):
            return tensor.to(dtype)
    return tensor
