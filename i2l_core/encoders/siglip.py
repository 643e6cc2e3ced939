"""Frozen vision encoders, pictures -> patch tokens, built by `transformers` from a config, never from a hub.

Two kinds, after the two published forms of SigLIP2 (arXiv 2502.14786):
- siglip_vision_model: every picture is resized to one square (SigLIP, and SigLIP2 at fixed resolution);
- siglip2_vision_model: NaFlex, every picture keeps its aspect, in a grid of at most `max_patches` patches.

Tokens are the last hidden state after the final norm. The pooling head is not built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_entries, check_int, check_number, shown
from ..errors import I2LError

SQUARE = "siglip_vision_model"
NAFLEX = "siglip2_vision_model"

# entries of the transformers config that a file must and may give, with the largest size allowed
_SIZES = {
    "hidden_size": 16384,
    "intermediate_size": 131072,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "patch_size": 256,
}
_GRID = {SQUARE: ("image_size", 8192), NAFLEX: ("num_patches", 65536)}
_OPTIONAL = {"num_channels", "hidden_act", "layer_norm_eps"}
_ATTENTION: dict[str, Any] = {"attn_implementation": "sdpa"}
_ACTIVATIONS = {"gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"}


@dataclass(frozen=True)
class EncoderConfig:
    """What rebuilds an encoder and its preprocessing. Raises I2LError for an unknown or impossible entry."""

    kind: str  # SQUARE or NAFLEX
    config: Mapping[str, Any]  # sizes, as transformers' SiglipVisionConfig / Siglip2VisionConfig name them
    image_size: int | None = None  # SQUARE: side of the square in pixels; equals config["image_size"]
    max_patches: int | None = None  # NAFLEX: largest number of patches of a picture
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # per channel, of pixels 0..1
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"  # "bicubic" or "bilinear", antialiased; Siglip2ImageProcessor: bilinear

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _GRID:
            raise I2LError(f"encoder kind must be {SQUARE} or {NAFLEX}, got {shown(self.kind)}")
        grid, limit = _GRID[self.kind]
        sizes = {**_SIZES, grid: limit}
        check_entries("encoder config", self.config, sizes, _OPTIONAL)
        for name, largest in sizes.items():
            check_int(f"encoder config {name}", self.config[name], largest)
        if self.config["hidden_size"] % self.config["num_attention_heads"]:
            raise I2LError("encoder config hidden_size is not a multiple of num_attention_heads")
        channels, activation = self.config.get("num_channels", 3), self.config.get("hidden_act", "gelu")
        if type(channels) is not int or channels != 3:
            raise I2LError(f"encoder config num_channels must be 3, got {shown(channels)}")
        if not isinstance(activation, str) or activation not in _ACTIVATIONS:
            raise I2LError(f"encoder config hidden_act {shown(activation)} is not known")
        check_number("encoder config layer_norm_eps", self.config.get("layer_norm_eps", 1e-6), 0, 1)
        if self.kind == SQUARE:
            check_int("encoder image_size", self.image_size, limit)
            side = self.config["image_size"]
            if self.image_size != side or side < self.config["patch_size"]:
                raise I2LError(f"encoder image_size {self.image_size} does not fit its config: {side}")
            if self.max_patches is not None:
                raise I2LError(f"a {SQUARE} has no max_patches, got {shown(self.max_patches)}")
        else:
            check_int("encoder max_patches", self.max_patches, limit)
            if self.image_size is not None:
                raise I2LError(f"a {NAFLEX} has no image_size, got {shown(self.image_size)}")
            count = self.config["num_patches"]
            if math.isqrt(count) ** 2 != count:
                raise I2LError(f"encoder config num_patches must be a square number, got {count}")
        for name, low in (("mean", -10.0), ("std", 0.0)):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) != 3:
                raise I2LError(f"encoder {name} must be three numbers, got {shown(values)}")
            for value in values:
                check_number(f"encoder {name}", value, low, 10)
            object.__setattr__(self, name, tuple(map(float, values)))
        if self.resample not in ("bicubic", "bilinear"):
            raise I2LError(f"encoder resample must be bicubic or bilinear, got {shown(self.resample)}")
        object.__setattr__(self, "config", dict(self.config))

    @property
    def token_dim(self) -> int:
        return self.config["hidden_size"]

    @property
    def patch(self) -> int:
        """side of a patch in pixels"""
        return self.config["patch_size"]

    @property
    def full_size(self) -> tuple[int, int]:
        """(height, width) of a square picture that it sees without resizing, or nearly: that of the gray picture"""
        side = self.image_size or math.isqrt(self.max_patches or 0) * self.patch
        return side, side

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": dict(self.config),
            "image_size": self.image_size,
            "max_patches": self.max_patches,
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.resample,
        }

    @classmethod
    def from_json(cls, data: Any) -> EncoderConfig:
        """The inverse of `to_json`; entries with a default may be left out. Raises I2LError."""
        optional = {field.name for field in fields(cls)} - {"kind", "config"}
        data = check_entries("encoder", data, ("kind", "config"), optional)
        return cls(**data)


class VisionEncoder(nn.Module):
    """Pictures of any sizes -> patch tokens. `model` is the plain transformers module, no pooling head."""

    def __init__(
        self,
        config: EncoderConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = _build(config, torch.device(device or "cpu"))
        if dtype is not None:
            self.model.to(dtype)

    def encode(self, images: Sequence[Tensor], batch: int = 8) -> Tensor:
        """The tokens of all pictures, concatenated: (1, sum of T_i, D).

        `images`: (H, W, 3) floats 0..1, of any sizes, on any device; `batch`: at most so many run at once.
        """
        return torch.cat(self.encode_each(images, batch))[None]

    def encode_each(self, images: Sequence[Tensor], batch: int = 8) -> list[Tensor]:
        """The tokens of each picture, (T_i, D), in order. Pictures never see each other."""
        prepared = [self.preprocess(image) for image in images]
        tokens: list[Tensor] = []
        while len(tokens) < len(prepared):
            start = len(tokens)
            end = start + 1  # a run of equal shapes
            while end < min(len(prepared), start + batch) and prepared[end].shape == prepared[start].shape:
                end += 1
            tokens.extend(self(torch.stack(prepared[start:end])))
        return tokens

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patch tokens of a picture of this size; tokens go row by row."""
        high, wide = self._input_size(height, width)
        return high // self.config.patch, wide // self.config.patch

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that a picture of this size is resized to"""
        config = self.config
        if config.kind == SQUARE:
            assert config.image_size is not None
            return config.image_size, config.image_size
        assert config.max_patches is not None
        return naflex_size(height, width, config.patch, config.max_patches)

    def preprocess(self, image: Tensor) -> Tensor:
        """(H, W, 3) floats 0..1 -> normalised (3, h, w), the encoder's sizes, on its own device."""
        config = self.config
        size = self._input_size(image.shape[0], image.shape[1])
        x = image.movedim(-1, 0)[None].float()  # HWC -> BCHW
        x = F.interpolate(x, size, mode=config.resample, antialias=True).clamp(0, 1)[0]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
        return (x - mean) / std

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, h, w) of one size -> tokens (B, T, D), differentiable."""
        embeddings = self.model.embeddings
        pixels = pixels.to(embeddings.patch_embedding.weight.device)
        if self.config.kind == SQUARE:
            # the host may move parameters alone: let the buffer follow
            embeddings.register_buffer(
                "position_ids", embeddings.position_ids.to(pixels.device), persistent=False
            )
            return self.model(pixels).last_hidden_state
        p = self.config.patch
        rows, columns = pixels.shape[2] // p, pixels.shape[3] // p
        # (B, 3, rows p, columns p) -> (B, rows columns, p p 3)
        patches = pixels.unflatten(3, (columns, p)).unflatten(2, (rows, p))
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[rows, columns]]).expand(len(pixels), -1)
        # without padding there is nothing to mask
        return self.model(patches, None, shapes).last_hidden_state


def naflex_size(height: int, width: int, patch: int, max_patches: int) -> tuple[int, int]:
    """The largest (height, width) in whole patches, near the picture's aspect, of at most `max_patches`.

    The scale is found by bisection with the bounds and precision of transformers' Siglip2ImageProcessor: both
    agree to the pixel (tested).
    """

    def patches(scale: float) -> tuple[int, int]:
        return (
            max(1, math.ceil(height * scale / patch)),
            max(1, math.ceil(width * scale / patch)),
        )

    precision = 1e-5
    low, high = precision / 10, 100.0
    while high - low >= precision:
        middle = (low + high) / 2
        rows, columns = patches(middle)
        if rows * columns <= max_patches:
            low = middle
        else:
            high = middle
    rows, columns = patches(low)
    return rows * patch, columns * patch


def _build(config: EncoderConfig, device: torch.device) -> Any:
    """The transformers module, on `device`; its one buffer is always real, as no file brings it."""
    sizes = {**config.config, "vision_use_head": False}
    if config.kind == SQUARE:
        return build_siglip(sizes, device)
    import transformers  # slow: only when an encoder is needed

    with device:
        made = transformers.Siglip2VisionConfig(**sizes, **_ATTENTION)
        return _unwrapped(transformers.Siglip2VisionModel(made)).eval()


def build_siglip(sizes: Mapping[str, Any], device: torch.device) -> Any:
    """SigLIP for squares of one size, as transformers' SiglipVisionConfig names its sizes; its buffer is real."""
    import transformers  # slow: only when an encoder is needed

    with device:
        made = transformers.SiglipVisionConfig(**sizes, **_ATTENTION)
        model = _unwrapped(transformers.SiglipVisionModel(made))
    count = model.embeddings.num_positions
    ids = torch.arange(count, device="cpu" if device.type == "meta" else device)[None]
    model.embeddings.register_buffer("position_ids", ids, persistent=False)
    return model.eval()


def _unwrapped(model: Any) -> Any:
    """transformers 4 wraps what transformers 5 exposes."""
    return getattr(model, "vision_model", model)
