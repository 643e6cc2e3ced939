"""Fuse LoRAs: the weighted sum of their changes, exact or at a lower rank.

    dW = sum_j w_j dW_j = sum_j w_j B_j A_j

Factors are never added or averaged: two B (or two A) share no basis, so their average contains cross terms B_1 A_2
that belong to neither LoRA, and it depends on the choice of factors. All results depend on the changes dW_j only. They
are computed from the factors and returned in fp32 or wider.

A layer that a LoRA lacks counts as zero; a LoRA with weight 0 is left out. If one LoRA addresses rows of a weight and
another the whole weight, both are brought to the whole weight.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base_models import find_model
from ..errors import I2LError
from ..lora import LoRA, LowRank, Target, to_whole_weights
from . import spectrum
from .whole_weights import row_widths

_BATCH = 2**22  # elements of factors decomposed at once: limits memory, does not change the result

_Pairs = Sequence[tuple[LoRA, float]]


@dataclass(frozen=True)
class FusionReport:
    """What a fusion kept, measured over all layers.

    `error`: Frobenius norm of what was dropped over the norm of the sum. `energy`: fraction of the squared singular
    values that was kept. `ranks`: the rank of each layer of the result.
    """

    error: float
    energy: float
    ranks: Mapping[Target, int]


def concat(loras: Sequence[LoRA], weights: Sequence[float]) -> LoRA:
    """The exact weighted sum; ranks add up. Differentiable in the factors.

    The references are those of all LoRAs, in order, each once. Raises I2LError for no LoRA, weights that are not
    finite or all zero, LoRAs that are not finite or for different base models, and layers of one weight that differ
    in size. An unknown base model is compatible with any.
    """
    return _sum(checked_pairs(loras, weights))


def svd(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, energy: float | None = None
) -> tuple[LoRA, FusionReport]:
    """The best approximation of the weighted sum with `rank` or less in every layer (Eckart and Young, 1936).

    With `energy`, a fraction above 0 and up to 1, every layer gets the smallest rank that keeps this fraction of
    its own energy, because a layer with small changes may matter as much as one with large changes. With both, the
    smaller rank is used; with neither, only directions that are zero to rounding are dropped. A layer of rank `rank`
    or less is returned unchanged.
    Without gradient. Raises I2LError as `concat` does, and for a rank or fraction that is out of range.
    """
    return truncated(concat(loras, weights), rank, energy)


def spectral(loras: Sequence[LoRA], weights: Sequence[float], alpha: float) -> tuple[LoRA, FusionReport]:
    """The weighted sum of LoRAs whose singular values are reweighted first, layer by layer.

        phi(dW) = U diag(exp(-alpha i)) S V^T        i = 0, 1, ... along the falling singular values

    Principal Feature Blending (arXiv 2507.04482) does this to features, with alpha 1; here it is applied to weight
    changes. The energy is not renormalised: the first direction keeps its size, the others shrink. alpha 0 keeps
    everything, a large alpha only the first direction. Rows of a fused weight that a LoRA addresses
    apart are layers of their own. The report is about the LoRAs one by one, before they are summed. Without gradient.
    Raises I2LError as `concat` does, and for an alpha that is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise I2LError(f"alpha must be a number from 0 up, got {alpha}; 0 keeps every direction as it is")

    def fading(values: Tensor) -> Tensor:
        return torch.exp(-alpha * torch.arange(values.shape[1], device=values.device)).expand_as(values)

    pairs, kept = [], KeptEnergy()
    for lora, weight in checked_pairs(loras, weights):
        faded, part = _reweighted(lora, fading)
        pairs.append((faded, weight))
        kept += part.scaled(weight**2)
    lora = _sum(pairs)
    return lora, kept.report(lora)


# checking and summing


def checked_pairs(loras: Sequence[LoRA], weights: Sequence[float]) -> _Pairs:
    """Each LoRA whose weight is not 0, with its weight. Raises I2LError as `concat` does."""
    if not loras:
        raise I2LError("fusing needs at least one LoRA, got none; connect one")
    if len(loras) != len(weights):
        raise I2LError(f"fusing needs one weight for each LoRA, got {len(weights)} for {len(loras)}")
    for number, (lora, weight) in enumerate(zip(loras, weights, strict=True), 1):
        if not math.isfinite(weight):
            raise I2LError(f"the weight of LoRA {number} must be a finite number, got {weight}")
        try:
            lora.check_finite()
        except I2LError as error:
            raise I2LError(f"LoRA {number}: {error}") from error
    common_base_model(loras)
    if not any(weights):
        raise I2LError("all weights are 0, so nothing would be left; give at least one LoRA another weight")
    return [(lora, weight) for lora, weight in zip(loras, weights, strict=True) if weight]


def common_base_model(loras: Sequence[LoRA]) -> str:
    """The base model of all LoRAs; empty if unknown. Raises I2LError if they are for different base models."""
    known: dict[str, int] = {}
    for number, lora in enumerate(loras, 1):
        if lora.base_model:
            known.setdefault(lora.base_model, number)
    if len(known) > 1:
        (one, first), (two, second) = list(known.items())[:2]
        raise I2LError(
            f"LoRA {first} is for {_title(one)}, LoRA {second} for {_title(two)}; use LoRAs of one base model"
        )
    return next(iter(known), "")


def _title(base_model: str) -> str:
    model = find_model(base_model)
    return f"{model.title} ({base_model})" if model else base_model


def _sum(pairs: _Pairs) -> LoRA:
    loras, weights = [lora for lora, _ in pairs], [weight for _, weight in pairs]
    parts: dict[Target, list[LowRank]] = {}
    for lora, weight in zip(_aligned(loras), weights, strict=True):
        for target, layer in lora.layers.items():
            parts.setdefault(target, []).append(_wide(layer, weight))
    return LoRA(
        {target: _joined(target, layers) for target, layers in parts.items()},
        base_model=common_base_model(loras),
        predictor=" + ".join(dict.fromkeys(lora.predictor for lora in loras if lora.predictor)),
        references=tuple(dict.fromkeys(name for lora in loras for name in lora.references)),
    )


def _wide(layer: LowRank, weight: float) -> LowRank:
    layer = layer.to(dtype=torch.promote_types(layer.up.dtype, torch.float32))
    return layer if weight == 1 else layer.scaled(weight)


def _joined(target: Target, layers: Sequence[LowRank]) -> LowRank:
    """Concatenate along the rank: the sum of the changes."""
    sizes = sorted({(layer.d_out, layer.d_in) for layer in layers})
    if len(sizes) > 1:
        (o1, i1), (o2, i2) = sizes[:2]
        raise I2LError(
            f"the LoRAs are for different base models: {target} is {o1}x{i1} in one and {o2}x{i2} in another; use "
            "LoRAs of one base model"
        )
    if len(layers) == 1:
        return layers[0]
    wide = functools.reduce(torch.promote_types, (layer.up.dtype for layer in layers))
    return LowRank(
        torch.cat([layer.down.to(wide) for layer in layers]),
        torch.cat([layer.up.to(wide) for layer in layers], dim=1),
    )


def _aligned(loras: Sequence[LoRA]) -> list[LoRA]:
    """The LoRAs on whole weights where they address a weight both as a whole and by rows, or by overlapping rows."""
    rows_of: dict[str, set[tuple[int, int] | None]] = {}
    widths: dict[str, int] = {}
    for lora in loras:
        for weight, width in row_widths(lora).items():
            widths[weight] = max(width, widths.get(weight, 0))
        for target in lora.layers:
            rows_of.setdefault(target.weight, set()).add(target.rows)
    mixed = {weight for weight, rows in rows_of.items() if _overlap(rows)}
    if not mixed:
        return list(loras)
    for lora in loras:
        widths |= {t.weight: layer.d_out for t, layer in lora.layers.items() if t.rows is None}
    return [_whole(lora, mixed, widths) for lora in loras]


def _overlap(rows: set[tuple[int, int] | None]) -> bool:
    runs = sorted(run for run in rows if run is not None)
    if len(runs) < len(rows):
        return bool(runs)
    return any(start + length > following for (start, length), (following, _) in itertools.pairwise(runs))


def _whole(lora: LoRA, weights: set[str], widths: Mapping[str, int]) -> LoRA:
    parts = {target: layer for target, layer in lora.layers.items() if target.weight in weights}
    if not parts:
        return lora
    rest = {target: layer for target, layer in lora.layers.items() if target.weight not in weights}
    return replace(lora, layers=rest | dict(to_whole_weights(LoRA(parts), widths).layers))


# singular directions


@dataclass(frozen=True)
class KeptEnergy:
    """Squared Frobenius norms of what was dropped, of what was kept, and of the whole."""

    lost: float = 0.0
    kept: float = 0.0
    total: float = 0.0

    def __add__(self, other: KeptEnergy) -> KeptEnergy:
        return KeptEnergy(self.lost + other.lost, self.kept + other.kept, self.total + other.total)

    def scaled(self, factor: float) -> KeptEnergy:
        return KeptEnergy(factor * self.lost, factor * self.kept, factor * self.total)

    def report(self, lora: LoRA) -> FusionReport:
        ranks = {target: layer.rank for target, layer in lora.layers.items()}
        if not self.total:
            return FusionReport(0.0, 1.0, ranks)
        return FusionReport(math.sqrt(self.lost / self.total), self.kept / self.total, ranks)


def truncated(lora: LoRA, rank: int | None, energy: float | None) -> tuple[LoRA, FusionReport]:
    """The LoRA with its smallest singular directions left out, as `svd` says. Raises I2LError as `svd` does."""
    if rank is not None and rank < 1:
        raise I2LError(f"rank must be a whole number from 1 up, got {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise I2LError(f"energy must be a fraction above 0 and up to 1, got {energy}; 0.99 keeps 99 %")
    fraction = 1.0 if energy is None and rank is None else energy

    def first(values: Tensor) -> Tensor:
        keep = torch.arange(values.shape[1], device=values.device) < (rank or values.shape[1])
        keep = keep.expand_as(values)
        if fraction is not None:
            left = values.square().flip(-1).cumsum(-1).flip(-1)  # (n, k): energy from each direction on
            keep = keep & (left > (1 - fraction) * left[:, :1])
        return keep

    short, kept = _reweighted(lora, first, 0 if fraction is not None else rank or 0)
    return short, kept.report(short)


@torch.no_grad()
def _reweighted(lora: LoRA, gains: Callable[[Tensor], Tensor], untouched: int = 0) -> tuple[LoRA, KeptEnergy]:
    """Multiply each singular value by its gain and drop directions that become zero, down to rank 1.

    `gains`: singular values (n, k) of n layers, falling -> their gains (n, k), 0..1, falling too. Layers of rank
    `untouched` or less are passed on.
    """
    layers = {target: _wide(layer, 1.0) for target, layer in lora.layers.items()}
    kept = KeptEnergy()
    for layer in layers.values():
        if layer.rank <= untouched:
            size = float(spectrum.energy(layer))
            kept += KeptEnergy(0.0, size, size)
    for targets in _batches({t: layer for t, layer in layers.items() if layer.rank > untouched}):
        up = _stacked([layers[target].up for target in targets])  # (n, d_out, k)
        down = _stacked([layers[target].down for target in targets])  # (n, k, d_in)
        directions = spectrum.directions(up, down)
        gain = gains(directions.values)
        values = gain * directions.values
        kept += KeptEnergy(
            *(float(x.square().sum()) for x in (directions.values - values, values, directions.values))
        )
        ranks = (values > spectrum.RESOLUTION * values[:, :1]).sum(1).clamp(min=1).tolist()
        most = max(ranks)
        up = up @ (directions.left * gain[:, None])[..., :most].to(up.dtype)
        down = directions.right[:, :most].to(down.dtype) @ down
        for target, rank, layer_up, layer_down in zip(targets, ranks, up, down, strict=True):
            layers[target] = LowRank(layer_down[:rank], layer_up[:, :rank].contiguous())
    return replace(lora, layers=layers), kept


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(matrices)) if len(matrices) > 1 else matrices[0][None]  # no copy of a large one


def _batches(layers: Mapping[Target, LowRank]) -> Iterator[list[Target]]:
    """Targets of layers of one size, as many at a time as `_BATCH` holds."""
    by_size: dict[tuple, list[Target]] = {}
    for target, layer in layers.items():
        by_size.setdefault((layer.d_out, layer.d_in, layer.rank, layer.up.dtype), []).append(target)
    for (d_out, d_in, rank, _), targets in by_size.items():
        count = max(1, _BATCH // (rank * (d_out + d_in)))
        yield from (targets[i : i + count] for i in range(0, len(targets), count))
