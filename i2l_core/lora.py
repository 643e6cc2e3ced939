"""LoRAs as immutable values, and their exact algebra.

    W' = W + s * B A        A = down (k, d_in), B = up (d_out, k), k = rank, s = strength

arXiv 2606.13809, eq. 2. There is no alpha: readers of files fold it into `up`.
All operations are differentiable and return new values; no tensor is changed in place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from .checks import check_strength
from .errors import I2LError


@dataclass(frozen=True, eq=False)
class LowRank:
    """One low-rank weight change, `delta = up @ down`, shape (d_out, d_in).

    Both tensors have the same floating point dtype and device. Raises I2LError otherwise, or if
    their shapes do not match.
    """

    down: Tensor  # (k, d_in)
    up: Tensor  # (d_out, k)

    def __post_init__(self) -> None:
        shapes = f"down {tuple(self.down.shape)}, up {tuple(self.up.shape)}"
        if self.down.ndim != 2 or self.up.ndim != 2:
            raise I2LError(f"a LoRA layer needs matrices, down (k, d_in) and up (d_out, k); got {shapes}")
        if self.down.shape[0] != self.up.shape[1]:
            raise I2LError(
                f"the ranks of a LoRA layer differ: {shapes}; expected down (k, d_in) and up (d_out, k)"
            )
        if 0 in self.down.shape or 0 in self.up.shape:
            raise I2LError(f"a LoRA layer is empty: {shapes}")
        if not self.down.is_floating_point() or self.down.dtype != self.up.dtype:
            raise I2LError(
                f"a LoRA layer needs one floating point type; got down {self.down.dtype}, up {self.up.dtype}"
            )
        if self.down.device != self.up.device:
            raise I2LError(
                f"a LoRA layer is split over devices: down {self.down.device}, up {self.up.device}"
            )

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def d_in(self) -> int:
        return self.down.shape[1]

    @property
    def d_out(self) -> int:
        return self.up.shape[0]

    def delta(self) -> Tensor:
        """The dense change `up @ down`, shape (d_out, d_in)."""
        return self.up @ self.down

    def scaled(self, strength: float) -> LowRank:
        """`strength * delta`, by scaling `up`. Raises I2LError when `strength` is NaN or infinite."""
        check_strength(strength)
        return LowRank(self.down, self.up * strength)

    def halves_swapped(self) -> LowRank:
        """The same change with the two halves of d_out swapped. Applying it twice gives the original."""
        return LowRank(self.down, torch.cat(self.up.chunk(2)[::-1]))

    def trimmed(self) -> LowRank:
        """The same delta without the ranks whose column of `up` is zero. At least rank 1 remains."""
        used = self.up.ne(0).any(dim=0)
        if bool(used.all()):
            return self
        if not bool(used.any()):
            used[0] = True
        return LowRank(self.down[used], self.up[:, used])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LowRank:
        return LowRank(self.down.to(device=device, dtype=dtype), self.up.to(device=device, dtype=dtype))

    def is_finite(self) -> bool:
        # the bounds of a tensor hold NaN when it does, and take one pass instead of five
        bounds = (bound for tensor in (self.down, self.up) for bound in torch.aminmax(tensor.detach()))
        return all(bool(torch.isfinite(bound)) for bound in bounds)


@functools.total_ordering
@dataclass(frozen=True)
class Target:
    """The weight that a LoRA layer changes: a whole weight of the diffusion model, or rows of a fused one.

    `weight` is ComfyUI's parameter name without the prefix "diffusion_model." and the suffix ".weight",
    for example "layers.0.attention.qkv". `rows` is (start, length) along d_out, or None for all rows.
    """

    weight: str
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.weight:
            raise I2LError("a LoRA target needs the name of a weight, got an empty one")
        if self.rows is not None and (self.rows[0] < 0 or self.rows[1] < 1):
            raise I2LError(f"rows of {self.weight} must be (start >= 0, length >= 1), got {self.rows}")

    def __lt__(self, other: Target) -> bool:
        return (self.weight, self.rows or (-1, 0)) < (other.weight, other.rows or (-1, 0))

    def __str__(self) -> str:
        if self.rows is None:
            return self.weight
        start, length = self.rows
        return f"{self.weight}[{start}:{start + length}]"


@dataclass(frozen=True, eq=False)
class LoRA:
    """LoRA layers by target, with the metadata of the LoRA.

    `base_model`: id of a base model (see `base_models`), empty if unknown. `predictor`: name of the predictor that made
    it. `references`: hashes of its reference pictures. Layers with overlapping targets add up.
    `left_out`: layers of its file that do not belong to a diffusion model, such as text encoders: kind -> count.
    Raises I2LError if there is no layer, or if d_out of a layer differs from the rows of its target.
    """

    layers: Mapping[Target, LowRank]
    base_model: str = ""
    predictor: str = ""
    references: tuple[str, ...] = field(default=())
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise I2LError("a LoRA needs at least one layer, got none")
        for target, layer in self.layers.items():
            if target.rows is not None and layer.d_out != target.rows[1]:
                raise I2LError(
                    f"{target}: the target has {target.rows[1]} rows, the LoRA layer {layer.d_out}"
                )
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        object.__setattr__(self, "references", tuple(self.references))
        object.__setattr__(self, "left_out", MappingProxyType(dict(self.left_out)))

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def scaled(self, strength: float) -> LoRA:
        """Every delta times `strength`. Raises I2LError when `strength` is NaN or infinite."""
        return self._with({target: layer.scaled(strength) for target, layer in self.layers.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LoRA:
        return self._with({target: layer.to(device, dtype) for target, layer in self.layers.items()})

    def only(self, targets: Iterable[Target]) -> LoRA:
        """The LoRA with only these targets."""
        return self._with({target: self.layers[target] for target in targets})

    def check_finite(self) -> None:
        """Raise I2LError naming the first layer that holds NaN or infinity."""
        for target, layer in self.layers.items():
            if not layer.is_finite():
                raise I2LError(
                    f"the LoRA layer of {target} holds NaN or infinite values; predict or export it again"
                )

    def _with(self, layers: Mapping[Target, LowRank]) -> LoRA:
        return replace(self, layers=layers)


def to_whole_weights(lora: LoRA, widths: Mapping[str, int]) -> LoRA:
    """The same LoRA with one whole-weight target per weight, exact.

    Layers that share a weight become one: A is stacked, B is placed block-wise on its rows, with zeros elsewhere, and
    the ranks add up. A single layer that covers its whole weight is returned unchanged.

    `widths`: weight -> d_out of the whole weight; read only for weights with rows or several layers.
    Raises I2LError if a width is missing, if rows exceed the weight, or if the d_in of the layers differ.
    """
    by_weight: dict[str, list[tuple[Target, LowRank]]] = {}
    for target, layer in lora.layers.items():
        by_weight.setdefault(target.weight, []).append((target, layer))
    return replace(lora, layers={Target(w): _whole(w, parts, widths) for w, parts in by_weight.items()})


def _whole(weight: str, parts: list[tuple[Target, LowRank]], widths: Mapping[str, int]) -> LowRank:
    if len(parts) == 1 and parts[0][0].rows is None:
        return parts[0][1]
    if weight not in widths:
        raise I2LError(
            f"the LoRA layers of {weight} cannot become one layer of the whole weight: its number of rows is "
            "not known; apply the LoRA to its model instead of saving it"
        )
    d_out = widths[weight]
    if len({layer.d_in for _, layer in parts}) != 1:
        raise I2LError(
            f"the LoRA layers of {weight} cannot become one layer of the whole weight: their inputs differ, "
            f"{[p.d_in for _, p in parts]}"
        )
    blocks = []
    for target, layer in sorted(parts, key=lambda part: part[0]):
        start, length = target.rows or (0, layer.d_out)
        if start + length > d_out or (target.rows is None and length != d_out):
            raise I2LError(f"{target}: a layer of {length} rows does not fit the {d_out} rows of {weight}")
        # (length, k) -> (d_out, k), zeros above and below
        blocks.append((layer.down, torch.nn.functional.pad(layer.up, (0, 0, start, d_out - start - length))))
    return LowRank(torch.cat([down for down, _ in blocks]), torch.cat([up for _, up in blocks], dim=1))
