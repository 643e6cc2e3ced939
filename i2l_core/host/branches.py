"""Which rows of a batched forward are positive and which negative.

The host numbers the chunks of a batch by position in a list of conds, and that position has no fixed meaning
(Dual CFG puts the negative one first). What does have one is the name under which a guider keeps a conditioning,
and every conditioning carries a uuid from there into the forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from uuid import UUID

_TAGS = "i2l_styles"


class Branch(str, Enum):
    POSITIVE = "positive"
    NEGATIVE = "negative"


@dataclass(frozen=True)
class Chunk:
    """Equal rows of one forward: their branch, and the tags of their conditioning."""

    branch: Branch
    tags: frozenset[str] = frozenset()


def read_conds(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[UUID, Chunk]:
    """uuid -> chunk, of all conditionings of a guider ("positive", "negative", "empty_negative_prompt", ...)."""
    return {
        entry["uuid"]: Chunk(
            Branch.NEGATIVE if "negative" in name else Branch.POSITIVE,
            frozenset(entry.get(_TAGS, ())),
        )
        for name, entries in conds.items()
        for entry in entries
        if "uuid" in entry
    }


def chunks_of(transformer_options: Mapping[str, Any], known: Mapping[UUID, Chunk]) -> tuple[Chunk, ...]:
    """The chunks of one forward, in order. A uuid that no guider told of falls back on the position."""
    positions = transformer_options.get("cond_or_uncond") or [0]
    uuids = transformer_options.get("uuids") or [None] * len(positions)
    by_position = {0: Chunk(Branch.POSITIVE)}
    return tuple(
        (uuid and known.get(uuid)) or by_position.get(position, Chunk(Branch.NEGATIVE))
        for uuid, position in zip(uuids, positions, strict=True)
    )


def tagged(conditioning: list[list[Any]], tag: str) -> list[list[Any]]:
    """A copy of a CONDITIONING for which LoRAs with this tag act. It may carry several."""
    return [[tensor, {**values, _TAGS: (*values.get(_TAGS, ()), tag)}] for tensor, values, *_ in conditioning]
