"""Read the weights of a file that somebody released: safetensors, or what PyTorch reads without running anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import comfy.utils
import torch
from torch import Tensor

from ...checks import shown
from ...errors import I2LError
from ...files.atomic import SUFFIX
from ...files.safetensors import check_finite, is_copied, open_safetensors, read_tensor

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (SUFFIX, *PICKLED)
_NESTED = "vae"  # the VAE's file has its weights under this name, beside those of its training
_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def read_weights(
    path: Path, expected: str, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The `wanted` tensors of a file by name; those of large safetensors files are mapped, not copied.

    `expected`: what the file should be, for messages. Pickles are read by the host's loader with weights_only, which
    runs nothing that they hold. Raises I2LError, with the file's name, for damaged files, pickles that hold more than
    weights, and entries that are no tensors of floats. Values are not looked at: `check_values`.
    """
    if path.suffix.lower() == SUFFIX:
        with open_safetensors(path, expected) as file:
            copied = is_copied(path)
            found = {
                name: read_tensor(file, name) if copied else file.get_tensor(name)
                for name in file.keys()
                if wanted(name)
            }
    elif path.suffix.lower() in PICKLED:
        found = {name: tensor for name, tensor in _unpickled(path, expected).items() if wanted(name)}
    else:
        raise I2LError(f"{path.name}: expected {expected}, a file that ends with {' or '.join(SUFFIXES)}")
    for name, tensor in found.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            raise I2LError(
                f"{path.name}: {shown(name)} has no numbers or a layout of its own; choose another file"
            )
        if tensor.dtype not in _TYPES:
            raise I2LError(
                f"{path.name}: {shown(name)} is of the type {tensor.dtype}, expected floats of 32, 16 or 8 bits; "
                "get the file that is not quantised"
            )
    return found


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def check_values(path: Path, weights: Mapping[str, Tensor], most: float = math.inf) -> None:
    """Raise I2LError, by name, for a number that is not finite, or beyond -most..most."""
    for name, tensor in weights.items():
        tensor = tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor
        try:
            check_finite(name, tensor)
        except I2LError as error:
            raise I2LError(f"{path.name}: {error}") from error
        if (
            tensor.numel()
            and most < math.inf
            and max(map(abs, torch.stack(tensor.aminmax()).tolist())) > most
        ):
            raise I2LError(
                f"{path.name}: {name} holds numbers beyond {most:g}; the file is damaged, download it again"
            )


def _unpickled(path: Path, expected: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise I2LError(f"{path.name}: expected {expected}, but there is no such file")
    try:
        found = comfy.utils.load_torch_file(str(path), safe_load=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if type(error).__name__ == "UnpicklingError" and "allowed global" in str(error):
            raise I2LError(
                f"{path.name}: it holds more than weights, so it is not read; get the file that its authors released, "
                "or a .safetensors form of it"
            ) from error
        raise I2LError(
            f"{path.name}: expected {expected}, but it is damaged or no file of PyTorch; download it again"
        ) from error
    if isinstance(found, dict) and isinstance(found.get(_NESTED), dict):
        found = found[_NESTED]
    if not isinstance(found, dict):
        raise I2LError(f"{path.name}: expected {expected}, but it holds no table of weights; choose its file")
    if "trainer" in found:
        raise I2LError(
            f"{path.name}: it is a training checkpoint of Infinity; export its transformer's weights alone"
        )
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise I2LError(
                f"{path.name}: expected {expected}, but {shown(str(name))} is no tensor; choose its file"
            )
    return found
