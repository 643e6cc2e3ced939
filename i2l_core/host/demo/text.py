"""The text encoder of the demo world as a CLIP, so that the text nodes of ComfyUI work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ops
import comfy.sd
import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from ...demo.prompts import tokenise
from ...demo.text import TextEncoder

_TOKENS = "i2l_tiny"


class Tokeniser:
    """Text -> {"i2l_tiny": [[(id, weight), ...]]}, as the host's tokenisers give it.

    The brackets of "(star:1.2)" are parsed and ignored: the demo model has no word weights.
    """

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None
    ) -> None:
        pass

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **options: Any
    ) -> dict[str, list]:
        parts = [unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0)]
        ids = tokenise(" ".join(parts))
        return {_TOKENS: [[(id, 1.0, i) if return_word_ids else (id, 1.0) for i, id in enumerate(ids)]]}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class TextModel(nn.Module):
    """What the host expects of a text encoder; `text` is the network."""

    def __init__(
        self,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.dtypes = {dtype}
        casting: Any = comfy.ops.manual_cast  # stands for torch.nn
        self.text = TextEncoder(device, dtype, casting)
        self.execution_device: torch.device | None = None

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def encode_token_weights(self, tokens: Mapping[str, list]) -> tuple[Tensor, None]:
        """-> conditioning (B, TOKENS, WIDTH) float32, and no pooled one."""
        ids = [[entry[0] for entry in row] for row in tokens[_TOKENS]]
        return self.text(torch.tensor(ids, device=self.execution_device)).float(), None

    def load_sd(self, tensors: Mapping[str, Tensor]) -> Any:
        return self.text.load_state_dict(tensors, strict=True, assign=getattr(self, "can_assign_sd", False))


def build_clip(tensors: Mapping[str, Tensor], disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A CLIP from the weights of `demo.text.TextEncoder`, computing in float32."""
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    return comfy.sd.CLIP(
        ClipTarget(Tokeniser, TextModel),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        state_dict=[weights],
        model_options={"dtype": torch.float32},
        disable_dynamic=disable_dynamic,
    )
