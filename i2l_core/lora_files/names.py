"""Which layer of which base model the name of a LoRA layer stands for.

A name is the host's own, the one of diffusers / DiffSynth (the same here), an alias, or kohya's: any of them with "_"
for ".". No two layers of a model have the same name in kohya's spelling, so names are compared in it, and what
converters made of them ("_" kept or replaced here and there) is found too. All names come from the tables in
`base_models`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..base_models import ARCHITECTURES, MODELS, Architecture, BaseModel, LayerRule, Weights, find_model
from ..errors import I2LError
from ..lora import LowRank, Target
from .keys import FLAT_PREFIXES, KeyFormat

_NUMBER = re.compile(r"(?<![^_])\d+(?![^_])")  # between two "_", or at an end

Sizes = Mapping[str, tuple[int, int]]
"""Name of a LoRA's layer -> (d_out, d_in)."""


@dataclass(frozen=True)
class NamedLayer:
    """The layer that a name stands for: a rule of a table and the index of the block.

    `native`: it is the host's name. `absent`: only the reference has the layer, not the host.
    """

    rule: LayerRule
    index: str
    native: bool
    absent: bool = False

    @property
    def parts(self) -> int:
        """of how many such layers the host's weight is made"""
        return 1 if self.native or self.rule.part is None else self.rule.part[1]

    @property
    def weight(self) -> str:
        return self.rule.weight.format(self.index)

    def read(self, layer: LowRank) -> tuple[Target, LowRank]:
        """Where a layer of this name lands, in the host's order of rows. Raises I2LError when its rows are no equal
        parts of those that the layer is made of."""
        if self.native:
            _check_parts(self.weight, layer, self.rule)
            return Target(self.weight), layer
        rows = None
        if self.rule.part is not None:
            rows = (self.rule.part[0] * layer.d_out, layer.d_out)
        elif self.rule.swapped:
            _check_parts(self.weight, layer, self.rule)
        return Target(self.weight, rows), layer.halves_swapped() if self.rule.swapped else layer


def find(architecture: Architecture, name: str) -> NamedLayer | None:
    """The layer that `name` stands for, with or without prefixes, in any spelling; None when no table has it.

    One walk: dots become "_", prefixes are peeled off one by one, and each number is tried as the block index.
    """
    names, longest = _names(architecture), _longest_name(architecture)
    for bare in _without_prefixes(name.replace(".", "_")):
        if bare in names and "{}" not in bare:
            return names[bare]
        if len(bare) > longest:
            continue
        for number in _NUMBER.finditer(bare):
            pattern = f"{bare[: number.start()]}{{}}{bare[number.end() :]}"
            if pattern in names:
                return replace(names[pattern], index=number.group())
    return None


def _without_prefixes(flat: str) -> Iterator[str]:
    """The name as it stands, then without its first prefix, without the next one, and so on."""
    yield flat
    while prefix := next((one for one in FLAT_PREFIXES if flat.startswith(one) and len(flat) > len(one)), ""):
        flat = flat.removeprefix(prefix)
        yield flat


@functools.cache
def _longest_name(architecture: Architecture) -> int:
    """Characters of the longest name that can be of the table, with a block index of up to 20 digits."""
    return max(map(len, _names(architecture))) + 20


@functools.cache
def _names(architecture: Architecture) -> Mapping[str, NamedLayer]:
    """Every name of the table's layers, with "_" for dots and {} for the block index, which stays empty."""
    layers = [(rule.weight, NamedLayer(rule, "", native=True)) for rule in architecture.rules]
    layers += [
        (rule.name, NamedLayer(rule, "", native=False))
        for rule in (*architecture.aliases, *architecture.rules)
    ]
    layers += [
        (name, NamedLayer(LayerRule(name, name), "", native=True, absent=True))
        for name in architecture.absent
    ]
    return {name.replace(".", "_"): layer for name, layer in layers}


@dataclass(frozen=True)
class Recognised:
    """What the names and sizes of a LoRA say.

    `architectures`: those that have all of its names, in sizes that go together. More than one: the names say too
    little (FLUX.2 and Qwen-Image share some). `model`: the base model, when only one has layers of these sizes.
    `nearest`: where there is none, the architecture that has most of the names, and `strange` the other names; with
    none of them, the sizes are those of no model of it.
    """

    architectures: tuple[Architecture, ...] = ()
    model: BaseModel | None = None
    models: tuple[BaseModel, ...] = ()
    nearest: Architecture | None = None
    strange: tuple[str, ...] = ()


def recognise_lora(sizes: Sizes) -> Recognised:
    """Which architecture and which base model a LoRA is for."""
    unknown = {one: tuple(name for name in sizes if find(one, name) is None) for one in ARCHITECTURES}
    nearest = min(ARCHITECTURES, key=lambda one: len(unknown[one]))
    if len(unknown[nearest]) == len(sizes):
        return Recognised()
    named = [one for one in ARCHITECTURES if not unknown[one]]
    sized = [one for one in named if not misshapen(one, sizes)]
    if not sized:
        return Recognised(nearest=nearest, strange=unknown[nearest])
    models = [model for model in MODELS if model.architecture in sized and not misfits(model, sizes)]
    architectures = [one for one in sized if not models or any(model.architecture is one for model in models)]
    return Recognised(tuple(architectures), models[0] if len(models) == 1 else None, tuple(models))


def architecture_of_weights(sizes: Sizes) -> Architecture | None:
    """The only architecture of which the host's weights have these names; where several have them, in these sizes."""
    named = [one for one in ARCHITECTURES if all(_is_weight(one, name) for name in sizes)]
    if len(named) > 1:
        named = [one for one in named if not misshapen(one, sizes)]
    return named[0] if len(named) == 1 else None


def _is_weight(architecture: Architecture, name: str) -> bool:
    named = find(architecture, name)
    return named is not None and not named.absent and named.weight == name


def misfits(model: BaseModel, sizes: Sizes) -> list[str]:
    """The layers that the base model has not, or not in this size."""
    weights = _weights_of(model)
    found = []
    for name, size in sizes.items():
        named = find(model.architecture, name)
        if named is not None and named.absent:
            continue
        shape = weights.get(f"{named.weight}.weight") if named else None
        if named is None or shape is None:
            found.append(f"{name} (it has no such layer)")
        elif size != (expected := (shape[0] // named.parts, shape[1])):
            found.append(f"{name} ({size[0]}x{size[1]}, there {expected[0]}x{expected[1]})")
    return found


def misshapen(architecture: Architecture, sizes: Sizes) -> list[str]:
    """The layers whose size goes with no model of the architecture in which the layers before them have theirs."""
    widths: dict[str, int] = {}
    found = []
    for name, size in sizes.items():
        named = find(architecture, name)
        if named is None or named.absent or not all(named.rule.size):
            continue
        d_out = size[0] if not named.native or named.rule.part is None else size[0] / named.rule.part[1]
        if not all(
            _agree(side, n, widths) for side, n in zip(named.rule.size, (d_out, size[1]), strict=True)
        ):
            found.append(f"{name} ({size[0]}x{size[1]})")
    return found


def _agree(side: int | str, n: float, widths: dict[str, int]) -> bool:
    """Whether a side of a table is `n` long where `widths` says how long others are; learns new ones."""
    if isinstance(side, int):
        return n == side
    times, _, name = side.rpartition("*")
    width = n / int(times or 1)
    return width.is_integer() and width == widths.setdefault(name, int(width))


def written_layers(
    weight: str, layer: LowRank, key_format: KeyFormat, architecture: Architecture | None
) -> Iterator[tuple[str, LowRank]]:
    """The layers (name, layer) by which a file of this key format says the same as `layer` on the whole `weight`.

    A fused weight becomes one layer for each of its parts, of no higher rank than it needs; parts that nothing
    acts on are left out. A weight that no table knows keeps the host's name. Raises I2LError when the rows of the
    weight are no equal parts.
    """
    rules = [] if architecture is None or key_format == "ComfyUI" else _rules_of(architecture, weight)
    if not rules:
        yield weight, layer
        return
    _check_parts(weight, layer, rules[0][0])
    if rules[0][0].part is None:
        rule, index = rules[0]
        yield rule.name.format(index), layer.halves_swapped() if rule.swapped else layer
    else:
        parts = [
            (rule.name.format(index), LowRank(layer.down, up).trimmed())
            for (rule, index), up in zip(rules, layer.up.chunk(len(rules)), strict=True)
        ]
        yield from [part for part in parts if part[1].up.any()] or parts


def _check_parts(weight: str, layer: LowRank, rule: LayerRule) -> None:
    parts = rule.part[1] if rule.part else 2 if rule.swapped else 1
    if layer.d_out % parts:
        raise I2LError(
            f"expected a multiple of {parts} rows, as {weight} is of {parts} equal parts, got {layer.d_out}; "
            "export it again, or choose the base model that it is for"
        )


def _rules_of(architecture: Architecture, weight: str) -> list[tuple[LayerRule, str]]:
    """The rules of all layers that the host keeps in `weight`, in the order of their rows, and the block index."""
    named = find(architecture, weight)
    if named is None or not _is_weight(architecture, weight):
        return []
    return [(rule, named.index) for rule in architecture.rules if rule.weight == named.rule.weight]


@functools.cache
def _weights_of(model: BaseModel) -> Weights:
    return model.weights()


def architecture_named(base_model: str) -> Architecture | None:
    """The table of a base model's id, or None."""
    model = find_model(base_model)
    return model.architecture if model else None
