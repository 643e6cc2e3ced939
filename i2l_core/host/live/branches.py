"""Which rows of a batched forward are positive and which negative.

The host numbers the chunks of a batch by position in a list of lists of conds, and that position has no fixed
meaning (Dual CFG puts the negative ones first). What does have one is the name under which a guider keeps a
conditioning. Its uuid goes into the forward with each chunk; but where a prompt is for an area, the host gives the
other side a copy for the same area that carries the uuid of this one. So a list is what its first entry is, and
a chunk is what its list is.
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


ChunkOfUuid = Mapping[UUID | None, Chunk]


def read_conds(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> ChunkOfUuid:
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


def branches_of(
    conds: Sequence[Sequence[Mapping[str, Any]] | None], chunk_of: ChunkOfUuid
) -> tuple[Branch | None, ...]:
    """The branch of each list that the host is about to run; None where no guider named its conds."""
    first = (next((chunk_of.get(entry.get("uuid")) for entry in entries or ()), None) for entries in conds)
    return tuple(chunk.branch if chunk else None for chunk in first)


def chunks_of(
    transformer_options: Mapping[str, Any],
    chunk_of: ChunkOfUuid,
    branches: Sequence[Branch | None],
) -> tuple[Chunk, ...]:
    """The chunks of one forward, in order. `branches`: of the lists that their positions count.

    Without a guider that told of them the first list is taken for the positive one, as in plain CFG.
    """
    positions = transformer_options.get("cond_or_uncond") or [0]
    uuids = transformer_options.get("uuids") or [None] * len(positions)
    chunks = []
    for position, uuid in zip(positions, uuids, strict=True):
        told = branches[position] if position < len(branches) else None
        branch = told or (Branch.NEGATIVE if position else Branch.POSITIVE)
        own = chunk_of.get(uuid)
        chunks.append(own if own and own.branch is branch else Chunk(branch))
    return tuple(chunks)


def tagged(conditioning: list[list[Any]], tag: str) -> list[list[Any]]:
    """A copy of a CONDITIONING for which LoRAs with this tag act. It may carry several."""
    return [[tensor, {**values, _TAGS: (*values.get(_TAGS, ()), tag)}] for tensor, values, *_ in conditioning]
