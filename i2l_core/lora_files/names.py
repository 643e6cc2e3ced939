"""How tools name the tensors of a LoRA, and which layer of which base model a name stands for.

A key is PREFIX + NAME + SUFFIX. The suffix says which of the two matrices it is; the name is the host's own, the
one of diffusers / DiffSynth (the same here), or kohya's: either of them with "_" for ".". No two layers of a model
have the same name in kohya's spelling, so names are compared in it, and what converters made of them ("_" kept or
replaced here and there) is found too. Prefixes say who wrote the file and are dropped. All names come from the
tables in `base_models`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..base_models import ARCHITECTURES, MODELS, Architecture, BaseModel, LayerRule, Weights, find_model
from ..lora import LowRank, Target

Kind = Literal["down", "up", "alpha"]
KeyFormat = Literal["ComfyUI", "diffusers", "DiffSynth"]
KEY_FORMATS: tuple[KeyFormat, ...] = ("ComfyUI", "diffusers", "DiffSynth")

# key format -> (before the name, after it for down, for up)
_WRITTEN: Mapping[KeyFormat, tuple[str, str, str]] = {
    "ComfyUI": ("diffusion_model.", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("transformer.", ".lora_A.weight", ".lora_B.weight"),
    "DiffSynth": ("", ".lora_A.default.weight", ".lora_B.default.weight"),
}
ALPHA = ".alpha"
_SUFFIXES: tuple[tuple[str, Kind], ...] = (
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    (".lora_down.default.weight", "down"),
    (".lora_up.default.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (ALPHA, "alpha"),
)
_DOTTED = ("diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", "dit.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")  # kohya's: "_" for "." in what follows
# peeled off in any order and number; the names in the tables have none of them
_FLAT_PREFIXES = tuple(prefix.replace(".", "_") for prefix in (*_DOTTED, *_FLAT))
_NUMBER = re.compile(r"(?<![^_])\d+(?![^_])")  # between two "_", or at an end


def split_key(key: object) -> tuple[Kind, str] | None:
    """(which tensor it is, the layer's name with its prefix), or None for what is no tensor of a plain LoRA."""
    if not isinstance(key, str):
        return None
    for suffix, kind in _SUFFIXES:
        if key.endswith(suffix) and len(key) > len(suffix):
            return kind, key.removesuffix(suffix)
    return None


def are_pair(down: str, up: str) -> bool:
    """Whether two keys of one layer are of one spelling."""
    pairs = zip(_SUFFIXES[::2], _SUFFIXES[1::2], strict=False)
    return any(down.endswith(one[0]) and up.endswith(other[0]) for one, other in pairs)


def keys_of(key_format: KeyFormat, name: str) -> tuple[str, str, str]:
    """The keys (down, up, alpha) of a layer in files of this key format."""
    prefix, down, up = _WRITTEN[key_format]
    return f"{prefix}{name}{down}", f"{prefix}{name}{up}", f"{prefix}{name}{ALPHA}"


def without_prefix(name: str) -> str:
    """The bare name, for layers that no table knows."""
    for prefix in (*_DOTTED, *_FLAT):
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return name


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
        """Where a layer of this name lands, in the host's order of rows."""
        if self.native:
            return Target(self.weight), layer
        rows = None
        if self.rule.part is not None:
            rows = (self.rule.part[0] * layer.d_out, layer.d_out)
        return Target(self.weight, rows), layer.halves_swapped() if self.rule.swapped else layer


def find(architecture: Architecture, name: str) -> NamedLayer | None:
    """The layer that `name` stands for, with or without prefixes, in any spelling; None when no table has it.

    One walk: dots become "_", prefixes are peeled off one by one, and each number is tried as the block index.
    """
    names = _names(architecture)
    for bare in _without_prefixes(name.replace(".", "_")):
        if bare in names and "{}" not in bare:
            return names[bare]
        for number in _NUMBER.finditer(bare):
            pattern = f"{bare[: number.start()]}{{}}{bare[number.end() :]}"
            if pattern in names:
                return replace(names[pattern], index=number.group())
    return None


def _without_prefixes(flat: str) -> Iterator[str]:
    """The name as it stands, then without its first prefix, without the next one, and so on."""
    yield flat
    for prefix in _FLAT_PREFIXES:
        if flat.startswith(prefix) and len(flat) > len(prefix):
            yield from _without_prefixes(flat.removeprefix(prefix))


@functools.cache
def _names(architecture: Architecture) -> Mapping[str, NamedLayer]:
    """Every name of the table's layers, with "_" for dots and {} for the block index, which stays empty."""
    layers = [(rule.weight, NamedLayer(rule, "", native=True)) for rule in architecture.rules]
    layers += [(rule.name, NamedLayer(rule, "", native=False)) for rule in architecture.rules]
    layers += [
        (name, NamedLayer(LayerRule(name, name), "", native=True, absent=True))
        for name in architecture.absent
    ]
    return {name.replace(".", "_"): layer for name, layer in layers}


def recognise_lora(names: Mapping[str, tuple[int, int]]) -> tuple[tuple[Architecture, ...], BaseModel | None]:
    """Which tables a LoRA's names are from, and the base model when only one is left.

    `names`: layer name -> (d_out, d_in). More than one table: the names say too little (FLUX.2 and Qwen-Image
    share some). No table: no name is known. The base model is told by widths and block numbers.
    """
    found = {one: sum(find(one, name) is not None for name in names) for one in ARCHITECTURES}
    most = max(found.values())
    if most == 0:
        return (), None
    architectures = [one for one, count in found.items() if count == most]
    fitting = [model for model in MODELS if model.architecture in architectures and _fits(model, names)]
    if fitting:
        architectures = [one for one in architectures if any(model.architecture is one for model in fitting)]
    return tuple(architectures), fitting[0] if len(fitting) == 1 else None


def written_layers(
    weight: str, layer: LowRank, key_format: KeyFormat, architecture: Architecture | None
) -> Iterator[tuple[str, LowRank]]:
    """The layers (name, layer) by which a file of this key format says the same as `layer` on the whole `weight`.

    A fused weight becomes one layer for each of its parts, of no higher rank than it needs; parts that nothing
    acts on are left out. A weight that no table knows keeps the host's name.
    """
    rules = [] if architecture is None or key_format == "ComfyUI" else _rules_of(architecture, weight)
    if not rules:
        yield weight, layer
    elif rules[0][0].part is None:
        rule, index = rules[0]
        yield rule.name.format(index), layer.halves_swapped() if rule.swapped else layer
    else:
        parts = [
            (rule.name.format(index), LowRank(layer.down, up).trimmed())
            for (rule, index), up in zip(rules, layer.up.chunk(len(rules)), strict=True)
        ]
        yield from [part for part in parts if part[1].up.any()] or parts


def _rules_of(architecture: Architecture, weight: str) -> list[tuple[LayerRule, str]]:
    """The rules of all layers that the host keeps in `weight`, in the order of their rows, and the block index."""
    named = find(architecture, weight)
    if named is None or named.absent or named.weight != weight:
        return []
    return [(rule, named.index) for rule in architecture.rules if rule.weight == named.rule.weight]


def _fits(model: BaseModel, names: Mapping[str, tuple[int, int]]) -> bool:
    """Whether the base model has a layer of this size under each of the names that its table knows."""
    weights = _weights_of(model)
    for name, size in names.items():
        named = find(model.architecture, name)
        if named is None or named.absent:
            continue
        shape = weights.get(f"{named.weight}.weight")
        if shape is None or size != (shape[0] // named.parts, shape[1]):
            return False
    return True


@functools.cache
def _weights_of(model: BaseModel) -> Weights:
    return model.weights()


def architecture_named(base_model: str) -> Architecture | None:
    """The table of a base model's id, or None."""
    model = find_model(base_model)
    return model.architecture if model else None
