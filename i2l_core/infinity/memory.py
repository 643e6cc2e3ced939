"""Keys and values of the scales that are drawn: what later scales attend to.

Two paths draw from one prompt: the content and the styled one. Buffers have their final size from the start, and
nothing is ever joined to them. The last scale is kept nowhere: it has one buffer for all layers in turn. Paths whose
keys never differ have one buffer of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import InfinityConfig
from .scales import Scales

CONTENT, STYLED = 0, 1


@dataclass(frozen=True)
class Extent:
    """What is kept: `rows` pictures; for each path the scales it draws; whether all paths have one buffer of keys."""

    scales: Scales
    rows: int
    ends: tuple[int, ...]
    one_key: bool

    def kept(self, end: int) -> int:
        """Tokens of a path that later scales of it need."""
        return sum(self.scales.counts[: min(end, len(self.scales.counts) - 1)])

    @property
    def key_ends(self) -> tuple[int, ...]:
        return (max(self.ends),) if self.one_key else self.ends

    def nbytes(self, config: InfinityConfig, element: int) -> int:
        """Bytes of a Memory with elements of `element` bytes: of one prompt, so twice that with guidance, less the
        buffer of the last scale, which both share."""
        return self.layers_nbytes(config, element) + self.last_nbytes(config, element)

    def layers_nbytes(self, config: InfinityConfig, element: int) -> int:
        kept = sum(self.kept(end) for end in (*self.key_ends, *self.ends))
        return config.depth * self.rows * kept * config.width * element

    def last_nbytes(self, config: InfinityConfig, element: int) -> int:
        last = len(self.scales.counts)
        buffers = sum(end == last for end in (*self.key_ends, *self.ends))
        return self.rows * buffers * sum(self.scales.counts) * config.width * element


class Scratch:
    """One layer's keys and values of all scales, for the last scale. Made when it is first used."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int], Tensor] = {}

    def joined(self, name: str, path: int, kept: Tensor, new: Tensor) -> Tensor:
        """The kept tokens and the new ones, valid until the next call of the same name and path."""
        before, count = kept.shape[2], new.shape[2]
        buffer = self._buffers.get((name, path))
        if buffer is None:
            buffer = kept.new_empty((*kept.shape[:2], before + count, kept.shape[3]))
            self._buffers[name, path] = buffer
        buffer[:, :, :before] = kept
        buffer[:, :, before:] = new
        return buffer


class Memory:
    """The keys and values of one prompt in all layers, each (rows, heads, tokens, head width)."""

    def __init__(
        self,
        config: InfinityConfig,
        extent: Extent,
        scratch: Scratch,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        def buffers(ends: Sequence[int]) -> list[list[Tensor]]:
            return [
                [
                    torch.empty(
                        (extent.rows, config.heads, extent.kept(end), config.head_width),
                        device=device,
                        dtype=dtype,
                    )
                    for end in ends
                ]
                for _ in range(config.depth)
            ]

        self._extent = extent
        self._scratch = scratch
        self._keys = buffers(extent.key_ends)
        self._values = buffers(extent.ends)
        self._last = len(extent.scales.counts) - 1

    def extended(
        self, layer: int, index: int, paths: Sequence[int], keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """All keys and values up to scale `index` (from 0) of each of `paths`, after adding those of this scale, one
        of each a path. Where paths are still one, or stay one in their keys, give fewer: the last one stands for the
        rest. Valid until the next call."""
        before = sum(self._extent.scales.counts[:index])
        found: list[tuple[Tensor, Tensor]] = []
        for number, path in enumerate(paths):
            if number and self._extent.one_key:
                seen = found[0][0]
            else:
                key, place = keys[min(number, len(keys) - 1)], 0 if self._extent.one_key else path
                seen = self._extended("keys", self._keys[layer][place], place, before, index, key)
            value = values[min(number, len(values) - 1)]
            found.append(
                (seen, self._extended("values", self._values[layer][path], path, before, index, value))
            )
        return found

    def _extended(self, name: str, buffer: Tensor, path: int, before: int, index: int, new: Tensor) -> Tensor:
        if index == self._last:
            return self._scratch.joined(name, path, buffer[:, :, :before], new)
        end = before + new.shape[2]
        buffer[:, :, before:end] = new
        return buffer[:, :, :end]
