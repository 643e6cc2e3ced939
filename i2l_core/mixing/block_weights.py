"""LoRA block weights: a strength per kind of layer, per projection of attention, per stream, and by depth.

    dW_l' = s_kind(l) * s_projection(l) * s_stream(l) * c(depth of l) * dW_l

Where the host fuses q, k and v into one layer, s_projection is a vector over its rows (d_out): rows of B are scaled.

Depth is 0 at the first block and 1 at the last, in the order of the forward pass. Input, output and time layers are
outside of blocks and are scaled by their kind only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from ..base_models.places import (
    ATTENTION,
    BOTH,
    IMAGE,
    MLP,
    OUT,
    TEXT,
    K,
    LayerPosition,
    Q,
    V,
    attention_part_of,
    position_of,
    projections_of,
)
from ..checks import check_strength
from ..errors import I2LError
from ..lora import LoRA, LowRank, Target
from ..schedule import Curve


@dataclass(frozen=True)
class BlockWeights:
    """Strengths by kind of layer, by projection, by stream and by depth. Raises I2LError unless all are finite.

    `other`: modulation, input, output and time layers. `image` and `text` do not change layers that both streams
    share. `q`, `k`, `v` and `out`, the layer after attention, are multiplied with `attention`.
    """

    attention: float = 1.0
    mlp: float = 1.0
    other: float = 1.0
    image: float = 1.0
    text: float = 1.0
    depth: Curve | None = None
    q: float = 1.0
    k: float = 1.0
    v: float = 1.0
    out: float = 1.0

    def __post_init__(self) -> None:
        for value in (
            self.attention,
            self.mlp,
            self.other,
            self.image,
            self.text,
            *self.projections.values(),
        ):
            check_strength(value)

    @property
    def projections(self) -> Mapping[str, float]:
        return {Q: self.q, K: self.k, V: self.v, OUT: self.out}


EVERYWHERE = "everywhere"
_THIRD = 1 / 3
PRESETS: Mapping[str, BlockWeights] = MappingProxyType(
    {
        EVERYWHERE: BlockWeights(),
        "early blocks": BlockWeights(depth=Curve(((_THIRD, 1.0), (_THIRD, 0.0)))),
        "middle blocks": BlockWeights(
            depth=Curve(((_THIRD, 0.0), (_THIRD, 1.0), (2 * _THIRD, 1.0), (2 * _THIRD, 0.0)))
        ),
        "late blocks": BlockWeights(depth=Curve(((2 * _THIRD, 0.0), (2 * _THIRD, 1.0)))),
        "attention": BlockWeights(mlp=0.0, other=0.0),
        "MLP": BlockWeights(attention=0.0, other=0.0),
        "modulation and ends": BlockWeights(attention=0.0, mlp=0.0),
        "without modulation and ends": BlockWeights(other=0.0),
        "without image stream": BlockWeights(image=0.0),
        "without text stream": BlockWeights(text=0.0),
    }
)
ALL = "all"
PROJECTIONS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        ALL: {},
        "without q and k": {"q": 0.0, "k": 0.0},
        "without v and out": {"v": 0.0, "out": 0.0},
    }
)
"""Choice -> fields of BlockWeights, for `dataclasses.replace`."""


def apply_block_weights(lora: LoRA, where: BlockWeights) -> LoRA:
    """Scale each layer by its block weight; layers with strength 0 are removed.

    Exact, in the dtype of the factors. Raises I2LError if no layer is left, if a layer becomes infinite, or if
    strengths differ within a layer whose parts are not known.
    """
    depths = _depths(lora)
    layers: dict[Target, LowRank] = {}
    for target, layer in lora.layers.items():
        changed = _scaled(target, layer, position_of(target.weight), where, depths.get(target.weight))
        if changed is not None:
            if changed is not layer and not changed.is_finite():
                raise I2LError(f"these strengths make {target} infinite; set smaller ones")
            layers[target] = changed
    if not layers:
        raise I2LError(
            f"these strengths switch off all {lora.n_layers} layers of the LoRA; "
            "set attention, mlp, other or depth above 0"
        )
    return replace(lora, layers=layers)


def _depths(lora: LoRA) -> dict[str, float]:
    """Weight -> depth 0..1, for weights in blocks, in the order of the forward pass."""
    places = {target.weight: position_of(target.weight) for target in lora.layers}
    in_blocks = {weight: (place.order[0], place.index) for weight, place in places.items() if place.blocks}
    lengths: dict[int, int] = {}  # by the position of a list of blocks in the forward pass
    for rank, index in in_blocks.values():
        lengths[rank] = max(lengths.get(rank, 0), index + 1)
    starts, total = {}, 0
    for rank in sorted(lengths):
        starts[rank] = total
        total += lengths[rank]
    last = max(total - 1, 1)
    return {weight: (starts[rank] + index) / last for weight, (rank, index) in in_blocks.items()}


def _scaled(
    target: Target, layer: LowRank, place: LayerPosition, where: BlockWeights, depth: float | None
) -> LowRank | None:
    common = {IMAGE: where.image, TEXT: where.text}.get(place.stream, 1.0)
    if depth is not None and where.depth is not None:
        common *= where.depth(depth)
    if place.kind not in (ATTENTION, BOTH):
        return _times(layer, common * (where.mlp if place.kind == MLP else where.other))
    strengths = set(where.projections.values())
    if len(strengths) == 1:  # no need to know the projections
        attention = common * where.attention * strengths.pop()
        if place.kind == ATTENTION or attention == common * where.mlp:
            return _times(layer, attention)
    if common * where.attention == 0 and place.kind == ATTENTION:
        return None
    parts = [common * where.attention * where.projections[name] for name in projections_of(target.weight)]
    if place.kind == BOTH:
        return _both(target, layer, parts, where.mlp * common)
    return _attention(target, layer, parts)


def _times(layer: LowRank, strength: float) -> LowRank | None:
    if strength == 0:
        return None
    return layer if strength == 1 else layer.scaled(strength)


def _attention(target: Target, layer: LowRank, parts: Sequence[float]) -> LowRank | None:
    """A layer of attention with one projection, or with several below each other."""
    if len(set(parts)) == 1:
        return _times(layer, parts[0])
    runs = _runs(target, layer, len(parts))
    if runs is None:  # other networks have fewer rows for k and v
        raise I2LError(
            f"{target}: the rows of q, k and v in this attention layer are not known for "
            f"{layer.d_out} x {layer.d_in}; use the same strength for all projections"
        )
    return _rows(layer, parts[runs])


def _both(target: Target, layer: LowRank, parts: Sequence[float], mlp: float) -> LowRank | None:
    """A layer whose first rows or columns belong to attention, with `parts` strengths, and the rest to the MLP."""
    if set(parts) == {mlp}:
        return _times(layer, mlp)
    shared = attention_part_of(target.weight)
    if shared is not None:
        steps = [*parts, *[mlp] * (shared.parts - shared.part)]
        # other networks, such as FLUX.1, have layers of this name with other parts: compare sizes
        if shared.along == "rows":
            runs = _runs(target, layer, shared.parts)
            if runs is not None:
                return _rows(layer, steps[runs])
        elif target.rows is None and layer.d_in == shared.parts * layer.d_out:
            return LowRank(layer.down * _steps(layer.down, layer.d_in, steps), layer.up)
    raise I2LError(
        f"{target}: this layer joins attention and MLP in an unknown way; set attention and mlp to the same value"
        " and use all projections"
    )


def _runs(target: Target, layer: LowRank, count: int) -> slice | None:
    """Which of the `count` runs of d_in rows in a weight this layer changes; None if they are not whole runs."""
    start, rows = target.rows or (0, layer.d_out)
    end, size = start + rows, layer.d_in
    if start % size or end % size or end > count * size or (target.rows is None and end < count * size):
        return None
    return slice(start // size, end // size)


def _rows(layer: LowRank, strengths: Sequence[float]) -> LowRank | None:
    """Equal runs of rows, each with its strength."""
    if len(set(strengths)) == 1:
        return _times(layer, strengths[0])
    return LowRank(layer.down, layer.up * _steps(layer.up, layer.d_out, strengths)[:, None])


def _steps(like: torch.Tensor, size: int, strengths: Sequence[float]) -> torch.Tensor:
    scale = torch.tensor(strengths, dtype=like.dtype, device=like.device)
    return scale.repeat_interleave(size // len(strengths))
