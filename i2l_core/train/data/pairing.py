"""Draw the references and targets of each training step (paper, section 3.3).

References and targets share the style and never the content (except in an ablation); the prompt describes the content
of the target. A batch is drawn whole from the seed and the step and then split over the devices, so it does not depend
on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import PairingTable
from .data_set import Styles

_DRAW = 0  # streams of randomness of a step
_NOISE = 1


@dataclass(frozen=True)
class TrainTarget:
    picture: int
    prompt: str
    u: float  # place in 0..1 of the noise level, before the model's shift
    seed: int  # of its noise


@dataclass(frozen=True)
class Pair:
    """One predicted LoRA: its references (numbers of pictures; `gray`: so many gray ones), and its targets."""

    references: tuple[int, ...]
    gray: bool
    targets: tuple[TrainTarget, ...]


def draw(styles: Styles, table: PairingTable, count: int, seed: int, step: int) -> list[Pair]:
    """The `count` pairs of a step. Noise levels are stratified: every part of the range in every batch."""
    rng = np.random.default_rng([seed, step, _DRAW])
    seeds = np.random.SeedSequence([seed, step, _NOISE]).generate_state(count * table.targets, np.uint64)
    total = count * table.targets
    u = rng.permutation((np.arange(total) + rng.uniform(size=total)) / total)
    pairs = []
    for row in range(count):
        references, pictures, gray = _pair(styles, table, rng)
        targets = []
        for n, picture in enumerate(pictures):
            i = row * table.targets + n
            prompt = "" if rng.uniform() < table.empty_prompts else styles.data.pictures[picture].prompt
            targets.append(TrainTarget(picture, prompt, float(u[i]), int(seeds[i])))
        pairs.append(Pair(tuple(references), gray, tuple(targets)))
    return pairs


def _pair(
    styles: Styles, table: PairingTable, rng: np.random.Generator
) -> tuple[Sequence[int], Sequence[int], bool]:
    """(references, targets, gray)"""
    n = 1 if rng.uniform() < table.single else int(rng.integers(1, table.most_references + 1))
    order = rng.permutation(styles.members[int(rng.integers(len(styles.members)))])
    gray, same = rng.uniform() < table.gray, rng.uniform() < table.same_content
    if gray:  # so that gray pictures come to mean: no style in particular
        members = [styles.members[int(i)] for i in rng.integers(len(styles.members), size=table.targets)]
        return [0] * n, [int(rng.choice(pictures)) for pictures in members], True
    content = {int(i): styles.data.pictures[int(i)].content for i in order}
    every = set(content.values())
    references: list[int] = []
    shown: set[str] = set()
    for i in content:  # at least one content is left for the targets
        if len(references) < n and (shown | {content[i]}) != every:
            references.append(i)
            shown.add(content[i])
    possible = [i for i in content if (content[i] in shown) == same]
    return references, [int(i) for i in np.resize(possible, table.targets)], False
