"""Hidden states of Qwen-Image's text encoder (Qwen2.5-VL) for a picture, from a CLIP of the user.

The picture goes where the image-edit template has one, with no words after it. Of the last hidden states, after the
final norm, the 64 of the system prompt and "user" are dropped: (T, R), one state per 28x28 pixels and 7 around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...encoders.cover import cover
from ...encoders.picture_encoders import Look, finite
from ...errors import I2LError
from ...predictors.v1.kinds import Residual
from ...references import Reference

PATCH = 28  # pixels a side of what becomes one state


@dataclass(frozen=True, eq=False)
class QwenStates:
    """A PictureEncoder. `clip`: the host's CLIP object; a picture gives (T, R) in `dtype`.

    `ready()` raises I2LError when `clip` is not that of Qwen-Image, or no such states are known.
    """

    clip: Any
    residual: Residual
    dtype: torch.dtype

    @property
    def id(self) -> str:
        patcher = self.clip.patcher
        return f"clip {patcher.patches_uuid} {self.clip.layer_idx} {self.residual.length} {self.dtype}"

    @contextmanager
    def ready(self) -> Iterator[Look]:
        from comfy.text_encoders.qwen_image import QwenImageTokenizer

        tokenizer = getattr(self.clip, "tokenizer", None)
        if not isinstance(tokenizer, QwenImageTokenizer):
            raise I2LError(
                f"clip: expected the CLIP of Qwen-Image, got one with {type(tokenizer).__name__}; "
                "use Load CLIP with the type qwen_image"
            )
        yield self._look

    def _look(self, picture: Reference) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens = self.clip.tokenize("", images=[self._seen(picture.pixels)])
        states = self.clip.encode_from_tokens(tokens)[0]
        expected = (self.residual.length, self.residual.width)
        if tuple(states.shape) != expected:
            raise I2LError(
                f"clip: expected hidden states {expected} of a picture, got {tuple(states.shape)}; use the CLIP of "
                "Qwen-Image (qwen_2.5_vl_7b), with its vision part"
            )
        return finite(states.to(self.dtype), "the CLIP")

    def _seen(self, pixels: Tensor) -> Tensor:
        """(H, W, 3) -> (1, side, side, 3), floats 0..1: as the host takes it, without resizing it again."""
        side = self.residual.side
        if side is None:
            raise I2LError(
                f"this predictor reads {self.residual.length} hidden states per picture; supported are 71 (Coarse) "
                "and 1376 (Fine)"
            )
        x = cover(pixels, side)[None]
        whole = round(side / PATCH) * PATCH
        if whole != side:  # bicubic, in bytes, as the reference
            x = F.interpolate(x, (whole, whole), mode="bicubic", antialias=True)
        return x.movedim(1, -1) / 255  # BCHW -> BHWC
