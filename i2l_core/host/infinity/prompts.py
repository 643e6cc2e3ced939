"""Prompts of Infinity from CONDITIONING: one, or one for each scale by the timestep ranges that were set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...checks import listed
from ...errors import I2LError

_RANGE = ("start_percent", "end_percent")
_KNOWN = {"pooled_output", *_RANGE}


def texts_of(name: str, conditioning: Sequence[Any], count: int) -> list[Tensor]:
    """The states of one text, or of one for each of `count` scales, each (B, L, width) float32.

    Scale i (from 0) is drawn from the entry whose range holds i / `count`; ranges are those of Conditioning Set
    Timestep Range, and entries those of Conditioning Combine. `name`: what it is, for messages. Raises I2LError for a
    scale with no entry or several, and for anything else that was set, since it would be ignored.
    """
    if not conditioning:
        raise I2LError(f"expected {name}, got empty CONDITIONING; use CLIP Text Encode")
    entries = [_entry(name, one) for one in conditioning]
    chosen = [_only(name, entries, index, count) for index in range(count)]
    return [entries[0][0]] if len(entries) == 1 else chosen


def _entry(name: str, entry: Any) -> tuple[Tensor, float, float]:
    states, options = entry
    if not isinstance(states, Tensor) or not states.is_floating_point() or states.ndim != 3:
        raise I2LError(
            f"expected {name} of a text, got none; use CLIP Text Encode with Infinity's text encoder"
        )
    if unknown := sorted(key for key, value in options.items() if key not in _KNOWN and value is not None):
        raise I2LError(
            f"{name} has {listed(unknown)}, which Infinity has no use for; connect the text alone, or its timestep "
            "ranges"
        )
    if not torch.isfinite(states).all():
        raise I2LError(f"{name} holds NaN or infinite values; load the text encoder again")
    start, end = (float(options.get(key, default)) for key, default in zip(_RANGE, (0.0, 1.0), strict=True))
    return states.float(), start, end


def _only(name: str, entries: Sequence[tuple[Tensor, float, float]], index: int, count: int) -> Tensor:
    share = index / count
    found = [states for states, start, end in entries if start <= share < end]
    if len(found) != 1:
        raise I2LError(
            f"expected {name} for scale {index + 1} of {count}, got {len(found)}; give each a timestep range of its "
            f"own, one of which covers {share:.3f}"
        )
    return found[0]
