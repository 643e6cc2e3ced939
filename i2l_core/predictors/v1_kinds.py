"""The predictors of version 1: for which base model, of which sizes, and how their files are laid out.

Their files (DiffSynth-Studio's Z-Image-i2L and Qwen-Image-i2L) have no metadata: names and shapes say it all. A
file holds blocks, and a block two small networks for each of its layers, one for A and one for B:

    {module}blocks.{b}.layers.{j}.proj_a.proj_in.weight    (c, D)            and the same with proj_b
    {module}blocks.{b}.layers.{j}.proj_a.proj_out.weight   (rank d_in, c)    proj_b: (rank d_out, c)
    {module}blocks.{b}.proj_residual.proj_in.weight        (m, R)            only where there is a residual
    {module}blocks.{b}.proj_residual.proj_out.weight       (c, T m)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ..checks import check_int
from ..errors import I2LError
from ..layouts import MODELS, BaseModel, Layout, Slot
from ..layouts.lumina2 import LUMINA2
from ..layouts.qwen_image import QWEN_IMAGE
from ..lora import Target
from .strict import check_shapes

RANK = 4  # of every version 1 predictor; its files cannot say it

Shapes = Mapping[str, tuple[int, ...]]

# the largest sizes a configuration may have: far above any real predictor
_LIMITS = {"code": 8192, "token_dim": 65536}
_MAX_BLOCKS = 8192
_MAX_WIDTH = 1 << 20

_NAME = re.compile(
    r"(.*?)blocks\.([0-9]+)\.(?:layers\.[0-9]+\.proj_[ab]|proj_residual)\.proj_(?:in|out)\.weight"
)


@dataclass(frozen=True)
class Kind:
    """What all predictors for one class of base models have in common.

    `parts`: what the names of a run of blocks begin with in the file -> the blocks of the base model they are
    for. A run holds, for each of `groups` in turn, one block per block of the base model, with these layers.
    """

    id: str
    layout: Layout
    parts: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, ...], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """names of the adapted layers of one block of the base model, in the order of the groups"""
        return tuple(name for group in self.groups for name in group)


KINDS = (
    Kind(
        id="z-image",
        layout=LUMINA2,
        parts=(
            ("layers_lora.", "layers"),
            ("context_refiner_lora.", "context_refiner"),
            ("noise_refiner_lora.", "noise_refiner"),
        ),
        groups=(
            ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
            ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        ),
    ),
    Kind(
        id="qwen-image",
        layout=QWEN_IMAGE,
        parts=(("", "transformer_blocks"),),
        groups=(
            ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            ("img_mlp.net.2", "img_mod.1"),
            ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            ("txt_mlp.net.2", "txt_mod.1"),
        ),
    ),
)


@dataclass(frozen=True)
class Residual:
    """What a predictor reads beside the picture's embedding: hidden states of a vision-language model."""

    length: int  # T: tokens of one picture, those of the chat template around it included
    width: int  # R: of a hidden state
    code: int  # m: width each state is compressed to before they are read together

    def __post_init__(self) -> None:
        for name, limit in (("length", 1 << 16), ("width", 1 << 16), ("code", 1 << 13)):
            check_int(f"residual {name}", getattr(self, name), limit)

    @property
    def side(self) -> int | None:
        """side of the square picture the states are of, in pixels; None for an unknown length"""
        return {COARSE: 224, FINE: 1024}.get(self.length)


COARSE = 8 * 8 + 7  # tokens: one per 28 pixels of the resized picture, and 7 of the template
FINE = 37 * 37 + 7

_TITLES = {
    ("z-image", 0): "Z-Image-i2L",
    ("qwen-image", 0): "Qwen-Image-i2L Style",
    ("qwen-image", COARSE): "Qwen-Image-i2L Coarse",
    ("qwen-image", FINE): "Qwen-Image-i2L Fine",
}


@dataclass(frozen=True)
class Head:
    """The network for one matrix of one adapted layer: token_dim -> code -> rank x width, no bias.

    `prefix`: of its tensors in the file; `block`: number of its block in the file, all parts counted through.
    """

    matrix: Literal["A", "B"]
    slot: int  # index into the configuration's slots
    width: int  # d_in for A, d_out for B
    block: int
    prefix: str


@dataclass(frozen=True)
class V1Config:
    """Everything that fixes the tensors of a version 1 predictor, and for what they are.

    Raises I2LError when a size is out of bounds, or when no known base model has these sizes.
    """

    kind: Kind
    counts: tuple[int, ...]  # blocks of the base model, per part of the kind
    widths: tuple[tuple[int, int], ...]  # (d_in, d_out), per layer of the kind
    token_dim: int  # D: width of a picture's embedding
    code: int  # c: width it is compressed to, for each matrix on its own
    residual: Residual | None = None

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            check_int(f"predictor {name}", getattr(self, name), limit)
        for (module, _), count in zip(self.kind.parts, self.counts, strict=True):
            check_int(f"the number of blocks of {module or 'the predictor'}", count, _MAX_BLOCKS)
        for name, widths in zip(self.kind.layers, self.widths, strict=True):
            for width in widths:
                check_int(f"the width of {name}", width, _MAX_WIDTH)
        _ = self.base_model

    @property
    def base_model(self) -> BaseModel:
        """The known model of this kind with blocks of this number and width."""
        width, count = self.widths[0][0], self.counts[0]
        sizes = {"dim": width, "hidden": width, "layers": count}  # as layouts name them
        for model in MODELS:
            if model.layout is self.kind.layout and all(
                sizes.get(name, size) == size for name, size in model.sizes.items()
            ):
                return model
        raise I2LError(
            f"its LoRAs would be for a model of the {self.kind.layout.title} with {count} blocks of width "
            f"{width} (at rank {RANK}), and no known model has these sizes"
        )

    @property
    def title(self) -> str:
        """The name it was published under, or what comes closest."""
        length = self.residual.length if self.residual else 0
        return _TITLES.get((self.kind.id, length), f"predictor of version 1 for {self.base_model.title}")

    def slots(self) -> tuple[Slot, ...]:
        """The adapted layers, in the order of the file."""
        lines = {line.name: line for line in self.kind.layout.lines}
        found = []
        for _, _, stack, i, group in self._blocks():
            for layer in group:
                d_in, d_out = self.widths[self.kind.layers.index(layer)]
                line = lines[f"{stack}.{{}}.{layer}"]
                rows = None if line.part is None else (line.part[0] * d_out, d_out)
                target = Target(line.weight.format(i), rows)
                found.append(Slot(line.name.format(i), target, d_in, d_out, line.swapped))
        return tuple(found)

    def heads(self) -> tuple[Head, ...]:
        """Both matrices of every adapted layer, those of equal shape one after the other."""
        found: list[Head] = []
        for block, prefix, _, _, group in self._blocks():
            for j, layer in enumerate(group):
                slot = len(found) // 2
                d_in, d_out = self.widths[self.kind.layers.index(layer)]
                found.append(Head("A", slot, d_in, block, f"{prefix}.layers.{j}.proj_a"))
                found.append(Head("B", slot, d_out, block, f"{prefix}.layers.{j}.proj_b"))
        return tuple(sorted(found, key=lambda head: head.width))

    def block_prefixes(self) -> tuple[str, ...]:
        """What the names of each block's tensors begin with, in the order of the file."""
        return tuple(prefix for _, prefix, _, _, _ in self._blocks())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a file, by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for head in self.heads():
            shapes[f"{head.prefix}.proj_in.weight"] = (self.code, self.token_dim)
            shapes[f"{head.prefix}.proj_out.weight"] = (RANK * head.width, self.code)
        if self.residual:
            length, width, code = self.residual.length, self.residual.width, self.residual.code
            for prefix in self.block_prefixes():
                shapes[f"{prefix}.proj_residual.proj_in.weight"] = (code, width)
                shapes[f"{prefix}.proj_residual.proj_out.weight"] = (self.code, length * code)
        return shapes

    def _blocks(self) -> Iterator[tuple[int, str, str, int, tuple[str, ...]]]:
        """(number, prefix, blocks of the base model, which of them, names of the layers) of each block."""
        number = 0
        for (module, stack), count in zip(self.kind.parts, self.counts, strict=True):
            for g, group in enumerate(self.kind.groups):
                for i in range(count):
                    yield number, f"{module}blocks.{g * count + i}", stack, i, group
                    number += 1


def kind_of(names: Iterable[str]) -> Kind | None:
    """The kind of a version 1 predictor with tensors of these names, or None when it is something else."""
    modules = {found[1] for found in map(_NAME.fullmatch, names) if found}
    return next((kind for kind in KINDS if any(module in modules for module, _ in kind.parts)), None)


def recognise(shapes: Shapes) -> V1Config:
    """The configuration of a file with exactly these tensors. Reads nothing but their names and shapes.

    Sizes are those that most of the tensors have, so that a wrong one is named. Raises I2LError when it is no
    predictor of version 1, when it is incomplete or holds anything else, and when its base model is not known.
    """
    kind = kind_of(shapes)
    if kind is None:
        raise I2LError("it is no i2L predictor of version 1")
    counts = tuple(_count(shapes, module, len(kind.groups)) for module, _ in kind.parts)
    runs = [  # of every group, what the names in its blocks begin with
        [
            f"{module}blocks.{g * count + i}."
            for (module, _), count in zip(kind.parts, counts, strict=True)
            for i in range(count)
        ]
        for g in range(len(kind.groups))
    ]
    widths = tuple(
        (
            _divided(shapes, run, f"layers.{j}.proj_a.proj_out.weight", 0, RANK),
            _divided(shapes, run, f"layers.{j}.proj_b.proj_out.weight", 0, RANK),
        )
        for run, group in zip(runs, kind.groups, strict=True)
        for j in range(len(group))
    )
    blocks = [prefix for run in runs for prefix in run]
    code, token_dim = _common(shapes, blocks, "layers.0.proj_a.proj_in.weight")
    residual = None
    if any(".proj_residual." in name for name in shapes):
        mid, width = _common(shapes, blocks, "proj_residual.proj_in.weight")
        length = _divided(shapes, blocks, "proj_residual.proj_out.weight", 1, mid)
        residual = Residual(length, width, mid)
    config = V1Config(kind, counts, widths, token_dim, code, residual)
    check_shapes(shapes, config.shapes(), f"of a predictor like {config.title}")
    return config


def _count(shapes: Shapes, module: str, groups: int) -> int:
    """Blocks of the base model that a run of blocks in the file is for."""
    found = {match[2] for match in map(_NAME.fullmatch, shapes) if match and match[1] == module}
    if not found or len(found) % groups:
        raise I2LError(
            f"expected {groups} equally long groups of {module}blocks, got {len(found)} blocks; "
            "the file is incomplete, download it again"
        )
    return len(found) // groups


def _common(shapes: Shapes, prefixes: Iterable[str], name: str) -> tuple[int, int]:
    """The shape that most of these matrices have."""
    found = Counter(shapes[prefix + name] for prefix in prefixes if len(shapes.get(prefix + name, ())) == 2)
    if not found:
        raise I2LError(f"{name} is missing in all blocks; the file is incomplete, download it again")
    rows, columns = found.most_common(1)[0][0]
    return rows, columns


def _divided(shapes: Shapes, prefixes: list[str], name: str, axis: int, by: int) -> int:
    size = _common(shapes, prefixes, name)[axis]
    if by < 1 or size % by:
        raise I2LError(f"{prefixes[0]}{name}: expected a multiple of {by} along axis {axis}, got {size}")
    return size // by
