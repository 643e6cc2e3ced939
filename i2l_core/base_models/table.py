"""The description of an architecture: a literal table from diffusers / DiffSynth layer names to the host's weights.

One table serves all sizes: widths are names of sizes, which are read from the loaded model or, if none is loaded, from
the table of base models. Maps from names to layers and back are derived from it (lora_files/names.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import I2LError
from ..lora import LowRank, Target
from .others import other_model

Weights = Mapping[str, tuple[int, ...]]
"""Parameter name in the host's diffusion model (without "diffusion_model.") -> shape."""

Side = int | str
"""A width in a table: a number, the name of a size, or a multiple of one, "4*dim"."""


@dataclass(frozen=True)
class AttentionPart:
    """The first `part` of `parts` equal rows (of d_out) or columns (of d_in) of a layer belong to attention."""

    along: Literal["rows", "columns"]
    part: int
    parts: int


@dataclass(frozen=True)
class LayerRule:
    """One kind of Linear layer. `{}` stands for the block index in both names.

    `part`: (i, n), the i-th of the n equal runs of rows of a fused weight; None: the whole weight.
    `swapped`: the host stores the two halves of d_out in swapped order.
    `size`: (d_out, d_in) of the layer, each a number, the name of a size, or a multiple of one as in "4*dim".
    `attention`: for a layer shared by attention and MLP, the part of attention, which comes first.
    """

    name: str
    weight: str
    part: tuple[int, int] | None = None
    swapped: bool = False
    size: tuple[Side, Side] = (0, 0)
    attention: AttentionPart | None = None


@dataclass(frozen=True)
class AdaptedLayer:
    """One Linear layer of a model: its diffusers / DiffSynth name, its target in the host, and its size."""

    name: str
    target: Target
    d_in: int
    d_out: int
    swapped: bool = False

    def place(self, layer: LowRank) -> LowRank:
        """Convert a layer between the row orders of diffusers and of the host. Applying it twice gives the original."""
        if (layer.d_out, layer.d_in) != (self.d_out, self.d_in):
            raise I2LError(
                f"{self.name}: expected a LoRA layer of {self.d_out}x{self.d_in}, "
                f"got {layer.d_out}x{layer.d_in}"
            )
        return layer.halves_swapped() if self.swapped else layer


@dataclass(frozen=True, eq=False)
class Architecture:
    """The table of one model class.

    Its layers:
    `signature`: weights that together identify the class: all of its models have them, no other class has all.
    `sizes`: size name -> (weight, axis) to read a width, or a name with `{}` to count blocks, without `{}` to tell
    whether a layer is there. A count holds for all rules in the same blocks.
    `absent`: layers that the reference implementation has and the host lacks, by the reference's names.
    `aliases`: further names of these layers that other tools use: read, never written.
    `unread`: starts of reference names that ComfyUI's own LoRA loader does not read (0.30).

    Its blocks, by the name of their list in the host or in diffusers:
    `sections`: list of blocks -> its title for people, in the order in which a picture passes through them.
    `two_streams`: lists whose blocks have weights for text and for the picture.

    Its forward in the host:
    `network`: name of the host's class.
    `text_only`: parts of names of layers that process no image tokens.
    `text_first`: starts of names of layers that see text and then the picture. Where given, the picture is found by
    counting from the text, which is as long as the forward's context.
    `references`: argument of the network that brings reference pictures; their tokens come after the picture's.
    `doubled_batch`: parts of names of layers that, beside reference pictures, run on a doubled batch: all rows at t,
    then the same rows at t = 0.
    `shared_rows`: start of names of layers that see reference pictures once for all rows of a batch.
    `prefix_cache`: attributes in which the network keeps keys and values between forwards, and their empty values.
    `tokenizers`: CLIP type -> class in `comfy.supported_models`, for text encoders without weights.
    """

    title: str
    rules: tuple[LayerRule, ...]
    signature: tuple[str, ...]
    sizes: Mapping[str, tuple[str, int] | str]
    absent: tuple[str, ...] = ()
    aliases: tuple[LayerRule, ...] = ()
    unread: tuple[str, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    two_streams: tuple[str, ...] = ()
    network: str = ""
    text_only: tuple[str, ...] = ()
    text_first: tuple[str, ...] = ()
    references: str = ""
    doubled_batch: tuple[str, ...] = ()
    shared_rows: tuple[str, ...] = ()
    prefix_cache: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)

    def matches(self, weights: Weights) -> bool:
        signature = all(len(weights.get(f"{name}.weight", ())) == 2 for name in self.signature)
        return signature and other_model(weights) is None

    def read_sizes(self, weights: Weights) -> dict[str, int]:
        """The sizes of a model for which `matches` is true, by name."""
        return {
            name: _count(where, weights)
            if isinstance(where, str)
            else weights.get(f"{where[0]}.weight", (0, 0))[where[1]]
            for name, where in self.sizes.items()
        }

    def weights(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The weights of all layers in a model of these sizes, as `adapted_layers` reads them from a loaded one.

        A size of 0, or a missing size, means that the model lacks the layers that use it.
        """
        counts = {_place(where): name for name, where in self.sizes.items() if isinstance(where, str)}
        shapes = {}
        for rule in self.rules:
            d_out, d_in = (_width(side, sizes) for side in rule.size)
            counted = counts.get(_place(rule.weight))
            if d_out and d_in:
                shape = (d_out * (rule.part[1] if rule.part else 1), d_in)
                for index in range(sizes.get(counted, 0) if counted else 1):
                    shapes[f"{rule.weight.format(index)}.weight"] = shape
        return shapes

    def adapted_layers(self, weights: Weights) -> tuple[AdaptedLayer, ...]:
        """All Linear layers of this model that the table knows. Rules whose weights it lacks are skipped.

        Raises I2LError if the rows of a fused weight cannot be divided into its parts.
        """
        return tuple(layer for rule in self.rules for layer in _adapted(rule, weights))


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model that predictors and LoRAs are made for.

    `sizes` tells it from the other models of its architecture; `other_sizes` are the rest, also of parts that only some
    of its releases have. The last three are how other tools call it in LoRA files: Civitai's name, which LoRA
    managers show; modelspec_architecture; where the model's own code is.
    """

    id: str
    title: str
    architecture: Architecture
    sizes: Mapping[str, int]
    other_sizes: Mapping[str, int]
    manager_name: str = ""
    modelspec_architecture: str = ""
    implementation: str = ""

    def weights(self) -> Weights:
        """The shapes of the weights of all layers, without a loaded model."""
        return self.architecture.weights({**self.sizes, **self.other_sizes})

    def matches(self, weights: Weights) -> bool:
        if not self.architecture.matches(weights):
            return False
        sizes = self.architecture.read_sizes(weights)
        return all(sizes[name] == size for name, size in self.sizes.items())


def _indices(name: str, weights: Weights) -> Iterator[int]:
    index = 0
    while f"{name.format(index)}.weight" in weights:
        yield index
        if "{}" not in name:
            return
        index += 1


def _place(name: str) -> str:
    """What a layer is in: its blocks, or the module around it."""
    return name.partition(".{}")[0] if "{}" in name else name.rpartition(".")[0] or name


def _width(side: Side, sizes: Mapping[str, int]) -> int:
    if isinstance(side, int):
        return side
    times, _, name = side.rpartition("*")
    return int(times or 1) * sizes.get(name, 0)


def _count(name: str, weights: Weights) -> int:
    return sum(1 for _ in _indices(name, weights))


def _adapted(rule: LayerRule, weights: Weights) -> Iterator[AdaptedLayer]:
    for index in _indices(rule.weight, weights):
        name, weight = rule.name.format(index), rule.weight.format(index)
        shape = weights[f"{weight}.weight"]
        if len(shape) != 2:
            raise I2LError(f"{weight}: expected a matrix, the loaded model has shape {shape}")
        d_out, d_in = shape
        rows = None
        if rule.part is not None:
            part, parts = rule.part
            if d_out % parts:
                raise I2LError(f"{weight}: {d_out} rows do not divide into {parts} equal parts")
            d_out //= parts
            rows = (part * d_out, d_out)
        yield AdaptedLayer(name, Target(weight, rows), d_in, d_out, rule.swapped)
