"""What a template's program gets in place of DiffSynth's pipeline.

DiffSynth always passes its pipeline (`diffusion/template.py`), and programs take from it what they need. These parts
exist here, over the VAE and the text encoder that the caller has:

    device, torch_dtype       of the tensors that a program makes
    preprocess_image          a picture -> (1, 3, H, W), -1 to 1
    vae.encode                (1, 3, H, W), -1 to 1 -> latents (1, C, h, w)
    units                     one, of the class name Flux2Unit_Qwen3PromptEmbedder; its `process(pipe, prompt)` gives
                              prompt_embeds (1, L, D) and text_ids (1, L, 4), integers, 0 but for the last: 0 to L - 1
    load_models_to_device     nothing: the caller's models are loaded when they are called
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Encode = Callable[[Tensor], Tensor]  # pictures (B, H, W, 3), 0 to 1 -> latents (B, C, h, w)
EncodeText = Callable[[str], Tensor]  # a prompt -> its states (1, L, D)

_SOCKETS = {"vae": "VAE", "units": "CLIP", "text_encoder_qwen3": "CLIP", "tokenizer": "CLIP"}


class PipeLacks(AttributeError):
    """The program asked for a part of the pipeline that is not there. `socket`: what would bring it; may be empty."""

    def __init__(self, part: str, socket: str = "") -> None:
        known = f"it needs a {socket}" if socket else "only DiffSynth's own pipeline has that"
        super().__init__(f"it asks for pipe.{part}: {known}")
        self.socket = socket


class Pipe:
    """The stand-in. Parts that nobody gave raise PipeLacks when they are asked for, so `hasattr` says False."""

    def __init__(
        self,
        device: torch.device,
        torch_dtype: torch.dtype,
        encode: Encode | None = None,
        encode_text: EncodeText | None = None,
    ) -> None:
        self.device = device
        self.torch_dtype = torch_dtype
        if encode:
            self.vae = _Vae(encode, self)
        if encode_text:
            self.units = [Flux2Unit_Qwen3PromptEmbedder(encode_text)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise PipeLacks(name, "" if "units" in self.__dict__ and name != "vae" else _SOCKETS.get(name, ""))

    def preprocess_image(
        self,
        image: Image.Image,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        pattern: str = "B C H W",
        min_value: float = -1,
        max_value: float = 1,
    ) -> Tensor:
        """A picture's values from 0 to 255 -> `min_value` to `max_value`, in the order that `pattern` names."""
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
        pixels = pixels.to(dtype=torch_dtype or self.torch_dtype, device=device or self.device)
        pixels = pixels * ((max_value - min_value) / 255) + min_value
        axes = pattern.split()
        order = [axis for axis in axes if axis != "B"]
        pixels = pixels.permute(*("HWC".index(axis) for axis in order))
        return pixels.unsqueeze(axes.index("B")) if "B" in axes else pixels

    def load_models_to_device(self, model_names: Sequence[str] = ()) -> None:
        """Nothing to do."""


class _Vae:
    def __init__(self, encode: Encode, pipe: Pipe) -> None:
        self._encode = encode
        self._pipe = pipe

    def encode(self, x: Tensor, **_: Any) -> Tensor:
        """(B, 3, H, W), -1 to 1 -> latents, in the pipe's dtype on its device. Settings such as tiling are ignored."""
        pixels = (x.float().movedim(1, -1) + 1) / 2
        return self._encode(pixels).to(device=self._pipe.device, dtype=self._pipe.torch_dtype)


class Flux2Unit_Qwen3PromptEmbedder:  # programs look for this name among the units
    """The unit of DiffSynth's pipeline that encodes a prompt."""

    def __init__(self, encode_text: EncodeText) -> None:
        self._encode_text = encode_text

    def process(self, pipe: Pipe, prompt: str) -> dict[str, Tensor]:
        """{"prompt_embeds": (1, L, D), "text_ids": (1, L, 4)}, on the device of the pipe."""
        states = self._encode_text(prompt).to(device=pipe.device, dtype=pipe.torch_dtype)
        ids = torch.zeros(1, states.shape[1], 4, dtype=torch.int64, device=pipe.device)
        ids[..., 3] = torch.arange(states.shape[1], device=pipe.device)
        return {"prompt_embeds": states, "text_ids": ids}
