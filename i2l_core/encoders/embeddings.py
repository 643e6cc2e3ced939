"""A cache of embeddings, so that each picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

LIMIT = 256 << 20  # bytes; an embedding takes 11 kB, the hidden states of a picture up to 10 MB

Key = tuple[str, str]  # (id of the encoder, hash of the picture)


class Embeddings:
    """A least-recently-used cache of tensors by key, of at most `limit` bytes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Tensor | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def keep(self, key: Key, value: Tensor) -> None:
        self._bytes -= self._kept.pop(key).nbytes if key in self._kept else 0
        self._kept[key] = value
        self._bytes += value.nbytes
        while self._bytes > self.limit:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
