"""What a template's program returns, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ...checks import listed, shown
from ...errors import I2LError


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a program; tensors are on the CPU, with memory of their own.

    `lora`: by name. `kv_cache`: block name -> (K, V), as the program returned them. `input_image`, `inpaint_mask`:
    PIL pictures, the mask white where the picture is drawn anew. `others`: names of what else it returned.
    """

    lora: dict[str, Tensor] | None = None
    kv_cache: dict[str, tuple[Tensor, Tensor]] | None = None
    input_image: Image.Image | None = None
    inpaint_mask: Image.Image | None = None
    others: tuple[str, ...] = ()

    def only_lora(self, name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The LoRA and the names of everything else. Raises I2LError naming the template when there is no LoRA."""
        others = (*(key for key in _KNOWN if key != "lora" and getattr(self, key) is not None), *self.others)
        if self.lora is None:
            returned = f"only {listed(sorted(others))}" if others else "nothing"
            hint = ": load it with Load Template" if self.kv_cache is not None else ""
            raise I2LError(f"{name}: expected its program to return a lora, it returned {returned}{hint}")
        return self.lora, tuple(sorted(others))


_KNOWN = ("lora", "kv_cache", "input_image", "inpaint_mask")


def read_outputs(name: str, outputs: Any) -> Outputs:
    """Raises I2LError naming the template and what is wrong. None stands for an output that is not there."""
    if not isinstance(outputs, Mapping):
        raise I2LError(f"{name}: its program must return a dict, got {type(outputs).__name__}")
    given = {key: value for key, value in outputs.items() if value is not None}
    readers = {"lora": _tensors, "kv_cache": _blocks, "input_image": _picture, "inpaint_mask": _picture}
    known = {
        key: read(f"{name}: expected its {key}", given[key]) for key, read in readers.items() if key in given
    }
    others = sorted(str(key) for key in given if key not in readers)
    return Outputs(**known, others=tuple(others))


def _tensors(expected: str, value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        raise I2LError(f"{expected} to be a dict of tensors, got {type(value).__name__}")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise I2LError(f"{expected} to be tensors by name, got {type(tensor).__name__} as {shown(key)}")
    return {key: _own(tensor) for key, tensor in value.items()}


def _blocks(expected: str, value: Any) -> dict[str, tuple[Tensor, Tensor]]:
    if not isinstance(value, Mapping):
        raise I2LError(f"{expected} to be a dict of blocks, got {type(value).__name__}")
    for key, pair in value.items():
        tensors = isinstance(pair, tuple | list) and all(isinstance(one, Tensor) for one in pair)
        if not isinstance(key, str) or not tensors or len(pair) != 2:
            raise I2LError(
                f"{expected} to be keys and values by block, got {type(pair).__name__} as {shown(key)}"
            )
    return {key: (_own(k), _own(v)) for key, (k, v) in value.items()}


def _picture(expected: str, value: Any) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise I2LError(f"{expected} to be a PIL picture, got {type(value).__name__}")
    return value.copy()


def _own(tensor: Tensor) -> Tensor:
    """A copy: what the program returned may be its own weights, which are moved and used again."""
    return tensor.detach().to("cpu", copy=True)
