"""The kinds of version 1 predictors: base model, sizes, and layout of their files.

Their files (DiffSynth-Studio's Z-Image-i2L and Qwen-Image-i2L) have no metadata; names and shapes identify them. A
file holds blocks. A block holds two small networks for each of its layers, one for A and one for B:

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
from functools import cached_property
from typing import Literal

from ...base_models import MODELS, AdaptedLayer, Architecture, BaseModel
from ...base_models.lumina2 import LUMINA2
from ...base_models.qwen_image import QWEN_IMAGE
from ...checks import check_int
from ...errors import I2LError
from ...files.safetensors import check_shapes

Shapes = Mapping[str, tuple[int, ...]]

# the largest sizes a configuration may have: far above any real predictor
_LIMITS = {"code": 8192, "token_dim": 65536, "rank": 1024}

_NAME = re.compile(
    r"(.*?)blocks\.([0-9]+)\.(?:layers\.[0-9]+\.proj_[ab]|proj_residual)\.proj_(?:in|out)\.weight"
)


@dataclass(frozen=True)
class V1Kind:
    """What all predictors for one class of base models have in common.

    `parts`: what the names of a run of blocks begin with in the file -> the blocks of the base model they are
    for. A run holds, for each of `groups` in turn, one block per block of the base model, with these layers.
    """

    architecture: Architecture
    parts: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, ...], ...]


Z_IMAGE = V1Kind(
    LUMINA2,
    parts=(
        ("layers_lora.", "layers"),
        ("context_refiner_lora.", "context_refiner"),
        ("noise_refiner_lora.", "noise_refiner"),
    ),
    groups=(
        ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
)

QWEN = V1Kind(
    QWEN_IMAGE,
    parts=(("", "transformer_blocks"),),
    groups=(
        ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        ("img_mlp.net.2", "img_mod.1"),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ("txt_mlp.net.2", "txt_mod.1"),
    ),
)

KINDS = (Z_IMAGE, QWEN)

# hidden states of a picture: one per 28 pixels a side of what is seen, and 7 of the template
COARSE = 8 * 8 + 7
FINE = 37 * 37 + 7


@dataclass(frozen=True)
class Residual:
    """Sizes of the second input of a predictor: hidden states of a vision-language model."""

    length: int  # T: states of one picture, those of the chat template around it included
    width: int  # R: of a state
    code: int  # m: width each state is compressed to before they are read together

    def __post_init__(self) -> None:
        for name, limit in (("length", 1 << 16), ("width", 1 << 16), ("code", 1 << 13)):
            check_int(f"residual {name}", getattr(self, name), limit)

    @property
    def side(self) -> int | None:
        """side of the square picture that the states are of, in pixels; None for an unknown length"""
        return {COARSE: 224, FINE: 1024}.get(self.length)


_TITLES = {
    ("z-image", 0): "Z-Image-i2L",
    ("qwen-image", 0): "Qwen-Image-i2L Style",
    ("qwen-image", COARSE): "Qwen-Image-i2L Coarse",
    ("qwen-image", FINE): "Qwen-Image-i2L Fine",
}


@dataclass(frozen=True)
class V1Head:
    """The network for one matrix of one adapted layer: token_dim -> code -> rank x width, no bias.

    `prefix`: of its tensors in the file; `block`: number of its block in the file, all parts counted through.
    """

    matrix: Literal["A", "B"]
    layer: int  # index into the configuration's adapted_layers
    width: int  # d_in for A, d_out for B
    block: int
    prefix: str


@dataclass(frozen=True)
class V1Block:
    """One block of a file: the adapted layers of one block of the base model that belong to one group."""

    prefix: str  # of its tensors in the file
    layers: tuple[str, ...]  # names in the base model


@dataclass(frozen=True)
class V1Config:
    """The configuration of a version 1 predictor: kind, base model and sizes."""

    kind: V1Kind
    base_model: BaseModel
    token_dim: int  # D: width of a picture's embedding
    code: int  # c: width it is compressed to, for each matrix on its own
    rank: int = 4  # of the LoRA from one picture
    residual: Residual | None = None

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            check_int(f"predictor {name}", getattr(self, name), limit)

    @property
    def title(self) -> str:
        """The name under which it was published, or the closest one."""
        length = self.residual.length if self.residual else 0
        return _TITLES.get((self.base_model.id, length), f"i2L version 1 for {self.base_model.title}")

    @cached_property
    def blocks(self) -> tuple[V1Block, ...]:
        """In the order of the file."""
        return tuple(_blocks(self.kind, self.base_model))

    @cached_property
    def adapted_layers(self) -> tuple[AdaptedLayer, ...]:
        """The adapted layers, in the order of the file."""
        known = {
            layer.name: layer for layer in self.kind.architecture.adapted_layers(self.base_model.weights())
        }
        return tuple(known[name] for block in self.blocks for name in block.layers)

    @cached_property
    def heads(self) -> tuple[V1Head, ...]:
        """Both matrices of every adapted layer, those of equal shape one after the other."""
        places = [(b, j) for b, block in enumerate(self.blocks) for j in range(len(block.layers))]
        heads = []
        for i, ((b, j), layer) in enumerate(zip(places, self.adapted_layers, strict=True)):
            prefix = f"{self.blocks[b].prefix}layers.{j}"
            heads.append(V1Head("A", i, layer.d_in, b, f"{prefix}.proj_a"))
            heads.append(V1Head("B", i, layer.d_out, b, f"{prefix}.proj_b"))
        return tuple(sorted(heads, key=lambda head: head.width))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a file, by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for head in self.heads:
            shapes[f"{head.prefix}.proj_in.weight"] = (self.code, self.token_dim)
            shapes[f"{head.prefix}.proj_out.weight"] = (self.rank * head.width, self.code)
        if self.residual:
            length, width, code = self.residual.length, self.residual.width, self.residual.code
            for block in self.blocks:
                shapes[f"{block.prefix}proj_residual.proj_in.weight"] = (code, width)
                shapes[f"{block.prefix}proj_residual.proj_out.weight"] = (self.code, length * code)
        return shapes


def kind_of(names: Iterable[str]) -> V1Kind | None:
    """The kind of a version 1 predictor with tensors of these names, or None when it is something else."""
    modules = {match[1] for match in map(_NAME.fullmatch, names) if match}
    return next((kind for kind in KINDS if any(module in modules for module, _ in kind.parts)), None)


def recognise(shapes: Shapes) -> V1Config:
    """Recognise the configuration from the names and shapes of the tensors of a file.

    Sizes are taken by majority, so that an error names the tensor that differs. Raises I2LError if it is not a
    predictor of version 1, or if a tensor is missing or unexpected.
    """
    kind = kind_of(shapes)
    if kind is None:
        raise I2LError("it is not an i2L predictor of version 1")
    # the model that has most of the names; of two with as many, as a small one in a large one, the small one
    models = [model for model in MODELS if model.architecture is kind.architecture]
    drafts = [V1Config(kind, model, 1, 1) for model in models]
    names = [draft.shapes().keys() for draft in drafts]
    best = max(range(len(names)), key=lambda i: (len(names[i] & shapes.keys()), -len(names[i])))
    draft = drafts[best]

    code, token_dim = _common(shapes, (f"{head.prefix}.proj_in.weight" for head in draft.heads))
    rows = {f"{head.prefix}.proj_out.weight": head.width for head in draft.heads}
    ranks = Counter(
        shapes[name][0] // width for name, width in rows.items() if len(shapes.get(name, ())) == 2
    )
    residual = None
    if any(".proj_residual." in name for name in shapes):
        prefixes = [f"{block.prefix}proj_residual" for block in draft.blocks]
        mid, width = _common(shapes, (f"{prefix}.proj_in.weight" for prefix in prefixes))
        _, columns = _common(shapes, (f"{prefix}.proj_out.weight" for prefix in prefixes))
        residual = Residual(columns // max(mid, 1), width, mid)
    rank = ranks.most_common(1)[0][0] if ranks else draft.rank
    config = V1Config(kind, draft.base_model, token_dim, code, rank, residual)
    check_shapes(shapes, config.shapes(), f"of a predictor like {config.title}")
    return config


def _common(shapes: Shapes, names: Iterable[str]) -> tuple[int, int]:
    """The shape that most of these matrices have."""
    names = list(names)
    sizes = Counter(shapes[name] for name in names if len(shapes.get(name, ())) == 2)
    if not sizes:
        raise I2LError(f"{names[0]} is missing, as in every other block; download the file again")
    rows, columns = sizes.most_common(1)[0][0]
    return rows, columns


def _blocks(kind: V1Kind, base_model: BaseModel) -> Iterator[V1Block]:
    known = {layer.name for layer in kind.architecture.adapted_layers(base_model.weights())}
    for module, stack in kind.parts:
        count = 0
        while f"{stack}.{count}.{kind.groups[0][0]}" in known:
            count += 1
        for g, group in enumerate(kind.groups):
            for i in range(count):
                layers = tuple(f"{stack}.{i}.{layer}" for layer in group)
                yield V1Block(f"{module}blocks.{g * count + i}.", layers)
