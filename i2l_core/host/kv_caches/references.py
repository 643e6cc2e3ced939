"""Core's Flux KV Cache beside caches on one side of CFG.

Its patch keeps the keys and values of reference pictures from the first forward of a sampling for all others. Prompts
with different caches run as forwards of their own, and a reference that has seen one cache is not that of the other: so
core's patch gets a place to keep them in for each combination of caches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

_CORE = "KV_Attn_Input"  # comfy_extras/nodes_flux.py


class OwnReferences:
    """What core's patches keep while the prompts of one cache are computed, for one sampling."""

    def __init__(self) -> None:
        # by the place in which it would be kept: caches that are nested make a place each
        self._kept: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def clear(self) -> None:
        self._kept.clear()

    @contextlib.contextmanager
    def swapped_in(self, patches: Iterable[Any]) -> Iterator[None]:
        """A context in which core's patches among `patches` read and write what is kept here."""
        before = [(patch, patch.cache) for patch in patches if type(patch).__name__ == _CORE]
        for patch, kept in before:
            # the outer place is held too, so that its id stays its own
            _, patch.cache = self._kept.setdefault(id(kept), (kept, {}))
        try:
            yield
        finally:
            for patch, kept in before:
                patch.cache = kept
