"""Where the picture is among the tokens of a network, so that a mask on the picture can weigh tokens.

The networks put their tokens alike: text first, then the picture row by row (filled up to a multiple where the
network wants one), then reference pictures. So the picture is found by counting from the end. Qwen-Image keeps text
in layers of its own, and Z-Image Omni puts references among the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...base_models import ARCHITECTURES, architecture_of_network
from ...errors import I2LError


def check_maskable(network: nn.Module) -> None:
    """Raise I2LError when it is not known where this network has its image tokens."""
    if architecture_of_network(network) is None:
        raise I2LError(
            f"a mask cannot be used on this MODEL: where {type(network).__name__} has its image tokens is not "
            f"known. Known are {', '.join(one.network for one in ARCHITECTURES)}; leave the mask away"
        )


@dataclass(frozen=True)
class ImageTokens:
    """The picture among the tokens of one forward."""

    frames: int  # pictures of one latent, one after the other: Qwen-Image-Layered
    height: int  # in tokens
    width: int
    tail: int  # tokens from its first one to the end of a sequence that also has text and references
    text_only: tuple[str, ...]

    @classmethod
    def read(cls, network: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> ImageTokens:
        """`x`: the latent (rows, C, H, W) or (rows, C, frames, H, W); `arguments`: what else goes into `network`."""
        architecture = architecture_of_network(network)
        assert architecture is not None  # check_maskable
        patch = int(network.patch_size)  # type: ignore[arg-type]
        frames = x.shape[2] if x.ndim == 5 else 1
        height, width = (-(-side // patch) for side in x.shape[-2:])
        multiple = getattr(network, "pad_tokens_multiple", None) or 1
        tail = -(-frames * height * width // multiple) * multiple
        tail += _reference_tokens(arguments.get(architecture.references), patch)
        return cls(frames, height, width, tail, architecture.text_only)

    def is_text(self, name: str) -> bool:
        """Whether layer `name` sees no image token."""
        return any(part in name for part in self.text_only)

    def shared(self, mask: Tensor) -> Tensor:
        """(N, 1): the weight of what the whole picture shares. bench/fusion.py compares it with other choices."""
        return mask.mean(dim=(1, 2))[:, None]

    def weigh(self, mask: Tensor, name: str, tokens: int | None) -> Tensor:
        """The weight of each token of layer `name`, (N, tokens or 1), for a mask (N, H, W) on the picture.

        An image token gets the mean of the mask over its patch. What the whole picture shares (text tokens,
        and modulation, which has no tokens) gets the mean of the whole mask, so a mask of ones changes nothing.
        """
        share = self.shared(mask)
        if tokens is None:
            return share
        weights = share.repeat(1, tokens)
        sees_picture = tokens >= self.frames * self.height * self.width  # modulation may come as one token
        if sees_picture and not self.is_text(name):
            patches = F.interpolate(mask[:, None], (self.height, self.width), mode="area").flatten(1)
            patches = patches.repeat(1, self.frames)
            start = max(0, tokens - self.tail)
            weights[:, start : start + patches.shape[1]] = patches
        return weights


def _reference_tokens(references: Any, patch: int) -> int:
    if references is None:
        return 0
    if torch.is_tensor(references):  # patches already, (rows, tokens, ...)
        return references.shape[1]
    return sum(-(-ref.shape[-2] // patch) * -(-ref.shape[-1] // patch) for ref in references)
