"""Where the picture is among the tokens of a network, so that a mask on the picture can weigh tokens.

The networks put their tokens alike: text first, then the picture row by row (filled up to a multiple where the
network wants one), then reference pictures. So the picture is found by counting from the end. Qwen-Image keeps text
in layers of its own, and Z-Image Omni puts references among the text. FLUX is counted from its text, because
core's Flux KV Cache drops the references' tokens from the second step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
            f"known. Known are {', '.join(one.network for one in ARCHITECTURES)}; disconnect the mask"
        )


@dataclass(frozen=True)
class ImageTokens:
    """The picture among the tokens of one forward."""

    frames: int  # pictures of one latent, one after the other: Qwen-Image-Layered
    height: int  # in tokens
    width: int
    tail: int  # tokens from its first one to the end of a sequence that also has text and references
    references: int  # tokens of reference pictures behind it
    text: int | None  # tokens of text before it in layers that see both; None where it is found from the end
    text_only: tuple[str, ...]
    text_first: tuple[str, ...]

    @classmethod
    def read(cls, network: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> ImageTokens:
        """`x`: the latent (rows, C, H, W) or (rows, C, frames, H, W); `arguments`: those of `BaseModel.apply_model`."""
        architecture = architecture_of_network(network)
        assert architecture is not None  # check_maskable
        patch = int(network.patch_size)  # type: ignore[arg-type]
        frames = x.shape[2] if x.ndim == 5 else 1
        height, width = (-(-side // patch) for side in x.shape[-2:])
        multiple = getattr(network, "pad_tokens_multiple", None) or 1
        tail = -(-frames * height * width // multiple) * multiple
        references = _reference_tokens(arguments.get(architecture.references), patch)
        context = arguments.get("c_crossattn", arguments.get("context"))
        text = context.shape[1] if architecture.text_first and torch.is_tensor(context) else None
        return cls(
            frames,
            height,
            width,
            tail + references,
            references,
            text,
            architecture.text_only,
            architecture.text_first,
        )

    def kind(self, name: str) -> Literal["text", "both", "picture"]:
        """Which tokens layer `name` sees; "picture" also where it is not known that it sees text before them."""
        if any(part in name for part in self.text_only):
            return "text"
        return "both" if name.startswith(self.text_first) else "picture"

    def shared(self, mask: Tensor) -> Tensor:
        """(N, 1): the weight of what the whole picture shares. bench/fusion.py compares it with other choices."""
        return mask.mean(dim=(1, 2))[:, None]

    def weigh(self, mask: Tensor, name: str, tokens: int | None) -> Tensor:
        """The weight of each token of layer `name`, (N, tokens or 1), for a mask (N, H, W) on the picture.

        An image token gets the mean of the mask over its patch. What the whole picture shares (text tokens,
        and modulation, which has no tokens) gets the mean of the whole mask, so a mask of ones changes nothing.
        """
        mean = self.shared(mask)
        if tokens is None:
            return mean
        weights = mean.repeat(1, tokens)
        count = self.frames * self.height * self.width
        if tokens >= count and self.kind(name) != "text":  # modulation may come as one token
            patches = F.interpolate(mask[:, None], (self.height, self.width), mode="area").flatten(1)
            start = self._start(name, tokens, count)
            weights[:, start : start + count] = patches.repeat(1, self.frames)
        return weights

    def _start(self, name: str, tokens: int, count: int) -> int:
        """Number of the picture's first token in a sequence of `tokens`, of which `count` are the picture."""
        if self.text is None:
            return max(0, tokens - self.tail)
        start = self.text if self.kind(name) == "both" else 0
        if tokens not in (start + count, start + count + self.references):
            raise I2LError(
                f"{name} runs on {tokens} tokens, expected {start} of text, {count} of the picture and "
                f"{self.references} of references: a node adds or removes tokens, so a mask on the LoRA has no place "
                "there; take that node out, or disconnect the mask"
            )
        return start


def _reference_tokens(references: Any, patch: int) -> int:
    if references is None:
        return 0
    if torch.is_tensor(references):  # patches already, (rows, tokens, ...)
        return references.shape[1]
    return sum(-(-ref.shape[-2] // patch) * -(-ref.shape[-1] // patch) for ref in references)
