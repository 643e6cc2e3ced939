"""Latents and texts of pictures: from the data set where it brings them, else from the cache, else made on the spot.

The demo world makes them on the spot, which costs next to nothing. A host's VAE and text encoder are used once,
before the training, and what they make is stored: they need not share the memory with the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import I2LError
from ..base import LatentCodec, Texts
from .cache import LATENTS, TEXTS, EncodingCache
from .data_set import DataSet, cover

Progress = Callable[[str, int, int], None]  # (what, done, of)

_CHUNK = 16  # prompts or pictures encoded before they are stored


@dataclass(frozen=True)
class EncodedData:
    """`cache` is None where everything is made on the spot, `vae` where latents are.

    `vae`, `text`: fingerprints of what makes latents and texts.
    """

    data: DataSet
    height: int
    width: int
    cache: EncodingCache | None = None
    vae: str | None = None
    text: str = ""

    def latent(self, index: int) -> Tensor | None:
        """(C, h, w) of a picture, or None where it has to be made on the spot. Raises I2LError when it is lost."""
        latent = self.data.latent(index)
        if latent is None and self.cache is not None and self.vae is not None:
            stored = self.cache.get(LATENTS, *self._latent_key(index))
            if stored is None:
                raise I2LError(f"{self.data.pictures[index].name} has changed since the start; start again")
            latent = stored["latent"]
        return latent

    def texts(self, index: int, prompt: str) -> Texts | None:
        """The embeddings of `prompt`: that of picture `index`, or "". None and errors as `latent`."""
        texts = self.data.texts(index) if prompt else None
        if texts is None and self.cache is not None:
            texts = self.cache.get(TEXTS, self.text, prompt)
            if texts is None:
                raise I2LError(f"the text embeddings of {prompt[:80]!r} are gone from the cache; start again")
        return texts

    def pixels(self, index: int) -> Tensor:
        """(height, width, 3) uint8, as targets are seen."""
        return as_tensor(cover(self.data.open(index), self.height, self.width))

    def prepare(
        self,
        codec: LatentCodec,
        indices: Iterable[int],
        process: tuple[int, int],
        empty_prompts: bool,
        progress: Progress,
    ) -> None:
        """Make and store what is missing for these pictures. `process`: (number of this process, of how many)."""
        assert self.cache is not None
        number, count = process
        prompts, pictures = {""} if empty_prompts else set(), []
        for index in indices:
            if self.data.texts(index) is None:
                prompts.add(self.data.pictures[index].prompt)
            if self.vae is None or self.data.latent(index) is not None:
                continue
            if not self.cache.has(LATENTS, *self._latent_key(index)):
                pictures.append(index)
        missing = [p for p in sorted(prompts) if not self.cache.has(TEXTS, self.text, p)][number::count]
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            for prompt, texts in zip(chunk, codec.texts(chunk), strict=True):
                self.cache.put(texts, TEXTS, self.text, prompt)
            progress("prompts", start + len(chunk), len(missing))
        pictures = pictures[number::count]
        for start in range(0, len(pictures), _CHUNK):
            chunk = pictures[start : start + _CHUNK]
            latents = codec.encode(torch.stack([self.pixels(i) for i in chunk]).float() / 255)
            for index, latent in zip(chunk, latents, strict=True):
                self.cache.put({"latent": latent}, LATENTS, *self._latent_key(index))
            progress("pictures", start + len(chunk), len(pictures))

    def _latent_key(self, index: int) -> Sequence[str]:
        return self.vae or "", f"{self.height}x{self.width}", self.data.version(index)


def as_tensor(picture) -> Tensor:
    """A PIL picture -> (H, W, 3) uint8, its own memory."""
    return torch.from_numpy(np.array(picture))
