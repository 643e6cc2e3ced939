"""The backbone and text encoder of the demo world as a base model for training, without ComfyUI."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import listed
from ..demo import files
from ..demo.autoencoder import PATCH
from ..demo.backbone import Backbone, BackboneConfig
from ..demo.files import WEIGHTS
from ..demo.prompts import TOKENS, tokenise, unknown_words, words_of
from ..demo.sampler import shifted
from ..errors import I2LError
from ..predictors.query.config import LayerSpec
from .base import Layers, Texts
from .checkpointing import checkpoint_blocks
from .config import BaseTable


class DemoBase:
    """The demo world's backbone and text encoder: a Base and a LatentCodec, without ComfyUI."""

    id = "i2l-tiny"
    noise_scale = 1.0

    def __init__(
        self, folder: Path, device: torch.device, checkpointing: bool = False, compiled: bool = False
    ) -> None:
        backbone, text = files.load_backbone(folder)
        self._backbone: Backbone = backbone.requires_grad_(False).to(device)
        self._text = text.requires_grad_(False).to(device)
        encoder, decoder = files.load_vae(folder)
        self._weight, self._bias = (part.to(device) for part in _as_convolution(encoder))
        self._decoder = decoder.to(device)
        self._device = device
        self.layers = adapted_layers(backbone.config)
        if checkpointing:
            checkpoint_blocks(self._backbone)
        # only where gradients flow: each other use would be compiled anew, for minutes
        self._learning = torch.compile(self._backbone) if compiled else self._backbone

    def sigmas(self, u: Tensor) -> Tensor:
        return shifted(u)

    def process_in(self, latents: Tensor) -> Tensor:
        return latents

    def process_out(self, latents: Tensor) -> Tensor:
        return latents

    def velocity(self, x: Tensor, sigma: Tensor, texts: Sequence[Texts], layers: Layers | None) -> Tensor:
        context = torch.stack([text["context"] for text in texts]).to(x)
        pairs = {t.weight: (down.to(x), up.to(x)) for t, (down, up) in (layers or {}).items()}
        network = self._learning if torch.is_grad_enabled() else self._backbone
        return network(x, sigma, context, pairs)

    def check_prompt(self, prompt: str, name: str) -> None:
        if unknown := unknown_words(prompt):
            raise I2LError(
                f"{name}: the demo model does not know {listed(unknown)}; use its words, or a base model of the host"
            )
        if len(words_of(prompt)) > TOKENS:
            raise I2LError(f"{name}: the prompt has more than the {TOKENS} words that the demo model reads")

    def release(self) -> None:
        pass

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> list[Texts]:
        ids = torch.tensor([tokenise(prompt) for prompt in prompts], device=self._device)
        return [{"context": context} for context in self._text(ids)]

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        pictures = pictures.to(self._device).permute(0, 3, 1, 2)  # BHWC -> BCHW
        return F.conv2d(pictures, self._weight, self._bias, stride=PATCH)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._decoder(latents).permute(0, 2, 3, 1).clamp(0, 1)  # BCHW -> BHWC


def adapted_layers(config: BackboneConfig) -> tuple[LayerSpec, ...]:
    """Every attention and feed-forward Linear of every block, qkv as the host keeps it: fused."""
    shapes = {
        "attention.qkv": (config.dim, 3 * config.dim),
        "attention.out": (config.dim, config.dim),
        "feed_forward.w1": (config.dim, config.ffn_dim),
        "feed_forward.w2": (config.ffn_dim, config.dim),
        "feed_forward.w3": (config.dim, config.ffn_dim),
    }
    blocks = [f"context_refiner.{i}" for i in range(config.n_refiner_layers)]
    blocks += [f"noise_refiner.{i}" for i in range(config.n_refiner_layers)]
    blocks += [f"layers.{i}" for i in range(config.n_layers)]
    return tuple(LayerSpec(f"{block}.{name}", None, *shapes[name]) for block in blocks for name in shapes)


@torch.no_grad()
def _as_convolution(encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (C, 3, PATCH, PATCH) and bias (C,) of the demo encoder: linear by construction, so one product does it."""
    count = 3 * PATCH * PATCH
    impulses = torch.cat([torch.zeros(1, count), torch.eye(count)]).view(-1, 3, PATCH, PATCH)
    bias, outputs = encoder(impulses).flatten(1).split([1, count])
    return (outputs - bias).T.reshape(-1, 3, PATCH, PATCH).contiguous(), bias[0]


class DemoBaseLoader:
    """The demo world loads without ComfyUI, and is its own codec."""

    def __init__(self) -> None:
        self._made: DemoBase | None = None

    def codec(self, table: BaseTable, device: torch.device) -> DemoBase:
        if self._made is None:
            folder = Path(table.weights) if table.weights else WEIGHTS
            self._made = DemoBase(folder, device, table.checkpointing, table.compile)
        return self._made

    @contextlib.contextmanager
    def base(self, table: BaseTable, device: torch.device, split_fused: bool) -> Iterator[DemoBase]:
        yield self.codec(table, device)
