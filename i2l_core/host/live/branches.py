"""Which rows of a batched forward are positive and which negative.

ComfyUI numbers the chunks of a batch by position in a list of lists of conds, and that position has no fixed
meaning (Dual CFG puts the negative ones first). What does have one is the name under which a guider keeps a
conditioning. Its uuid goes into the forward with each chunk; but where a prompt is for an area, ComfyUI gives the
other side a copy for the same area that carries the uuid of this one. So a cond list takes the branch of its first
entry, and a chunk takes the branch of its list.
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
    """The branch of each cond list of a batch; None for a list that is neither the guider's nor plain CFG's."""
    first = (next((chunk_of.get(entry.get("uuid")) for entry in entries or ()), None) for entries in conds)
    branches = tuple(chunk.branch if chunk else None for chunk in first)
    plain = Branch.POSITIVE, Branch.NEGATIVE  # the order of `comfy.samplers.sampling_function`
    if len(branches) == 2 and all(known in (None, side) for known, side in zip(branches, plain, strict=True)):
        return plain
    return branches


def chunks_of(
    transformer_options: Mapping[str, Any],
    chunk_of: ChunkOfUuid,
    branches: Sequence[Branch | None] | None,
) -> tuple[Chunk | None, ...]:
    """The chunks of one forward, in order; None for one whose branch nobody named.

    `branches`: of the lists that the positions count; None outside of a cond batch.
    """
    positions = transformer_options.get("cond_or_uncond")
    if positions is None:
        return (None,)
    uuids = transformer_options.get("uuids") or [None] * len(positions)
    chunks: list[Chunk | None] = []
    for position, uuid in zip(positions, uuids, strict=True):
        branch = branches[position] if branches and position < len(branches) else None
        own = chunk_of.get(uuid)
        if branch is None or (own and own.branch is branch):
            chunks.append(own)
        else:
            chunks.append(Chunk(branch))
    return tuple(chunks)


def tagged(conditioning: list[list[Any]], tag: str) -> list[list[Any]]:
    """A copy of a CONDITIONING for which LoRAs with this tag act. It may carry several."""
    return [[tensor, {**values, _TAGS: (*values.get(_TAGS, ()), tag)}] for tensor, values, *_ in conditioning]
