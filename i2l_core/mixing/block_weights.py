"""LoRA block weights: a strength per kind of layer, per stream, and by depth.

    dW_l' = s_kind(l) * s_stream(l) * c(depth of l) * dW_l

Depth is 0 at the first block and 1 at the last, in the order of the forward pass. Input, output and time layers are
outside of blocks and are scaled by their kind only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from ..base_models.places import (
    ATTENTION,
    BOTH,
    IMAGE,
    MLP,
    TEXT,
    LayerPosition,
    attention_part_of,
    position_of,
)
from ..checks import check_strength
from ..errors import I2LError
from ..lora import LoRA, LowRank, Target
from ..schedule import Curve


@dataclass(frozen=True)
class BlockWeights:
    """Strengths by kind of layer, by stream and by depth. Raises I2LError unless all are finite.

    `other`: modulation, input, output and time layers. `image` and `text` do not change layers that both streams
    share.
    """

    attention: float = 1.0
    mlp: float = 1.0
    other: float = 1.0
    image: float = 1.0
    text: float = 1.0
    depth: Curve | None = None

    def __post_init__(self) -> None:
        for value in (self.attention, self.mlp, self.other, self.image, self.text):
            check_strength(value)


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


def apply_block_weights(lora: LoRA, where: BlockWeights) -> LoRA:
    """Scale each layer by its block weight; layers with strength 0 are removed.

    Exact, in the dtype of the factors. Raises I2LError if no layer is left.
    """
    depths = _depths(lora)
    layers: dict[Target, LowRank] = {}
    for target, layer in lora.layers.items():
        changed = _scaled(target, layer, position_of(target.weight), where, depths.get(target.weight))
        if changed is not None:
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
    if place.kind == BOTH and where.attention != where.mlp:
        return _both(target, layer, where.attention * common, where.mlp * common)
    strength = common * {ATTENTION: where.attention, BOTH: where.attention, MLP: where.mlp}.get(
        place.kind, where.other
    )
    if strength == 0:
        return None
    return layer if strength == 1 else layer.scaled(strength)


def _both(target: Target, layer: LowRank, attention: float, mlp: float) -> LowRank | None:
    """A layer whose first rows or columns belong to attention and the rest to the MLP."""
    if attention == mlp == 0:
        return None
    shared = attention_part_of(target.weight)
    rows = shared is not None and shared.along == "rows"
    whole, other = (layer.d_out, layer.d_in) if rows else (layer.d_in, layer.d_out)
    # other networks, such as FLUX.1, have layers of this name with other parts: compare sizes
    if shared is None or target.rows is not None or whole != shared.parts * other:
        raise I2LError(
            f"{target}: this layer joins attention and MLP in an unknown way; set attention and mlp to the same value"
        )
    size = shared.part * other
    if rows:
        return LowRank(layer.down, layer.up * _steps(layer.up, whole, size, attention, mlp)[:, None])
    return LowRank(layer.down * _steps(layer.down, whole, size, attention, mlp), layer.up)


def _steps(like: torch.Tensor, size: int, first: int, before: float, after: float) -> torch.Tensor:
    scale = torch.full((size,), after, dtype=like.dtype, device=like.device)
    scale[:first] = before
    return scale
