"""The diffusion backbone of the demo world, for training: the host's Lumina2 / Z-Image class, tensor for tensor.

The parameter names and the forward are those of ComfyUI's `NextDiT` with `z_image_modulation`, so the weights load
there as they are; a test proves that both give the same output. It differs in two ways that training needs: it is
differentiable throughout (the host's fused kernels are not), and every Linear can take one LoRA per group of rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LayerPair = tuple[Tensor, Tensor]  # down (S, k, d_in), up (S, d_out, k) for S groups of rows


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes; the names are those of the host's NextDiT."""

    dim: int = 256
    n_layers: int = 6
    n_refiner_layers: int = 1
    n_heads: int = 4
    axes_dims: tuple[int, ...] = (16, 24, 24)  # rotary widths of the axes (token, row, column)
    cap_feat_dim: int = 128
    in_channels: int = 16
    patch_size: int = 2
    ffn_dim_multiplier: float = 8 / 3
    multiple_of: int = 256
    norm_eps: float = 1e-5
    rope_theta: float = 256.0
    time_scale: float = 1000.0
    pad_tokens_multiple: int = 16

    def __post_init__(self) -> None:
        if self.dim != self.n_heads * sum(self.axes_dims):
            raise ValueError(
                f"dim {self.dim} must be n_heads {self.n_heads} * sum(axes_dims) {sum(self.axes_dims)}"
            )
        if self.dim < 256:
            raise ValueError(f"dim: expected 256 or more (the host's modulation is 256 wide), got {self.dim}")

    @property
    def ffn_dim(self) -> int:
        wide = int(self.ffn_dim_multiplier * self.dim)
        return self.multiple_of * math.ceil(wide / self.multiple_of)

    def host_config(self) -> dict:
        """What ComfyUI's `supported_models.ZImage` takes to build the same network."""
        fixed = {
            "image_model": "lumina2",
            "qk_norm": True,
            "z_image_modulation": True,
            "n_kv_heads": self.n_heads,
        }
        return asdict(self) | fixed | {"axes_dims": list(self.axes_dims), "axes_lens": [1536, 512, 512]}


class LoRALinear(nn.Linear):
    """A Linear that adds a low-rank product per group of rows: y = W x + up (down x)."""

    def forward(self, x: Tensor, pair: LayerPair | None = None) -> Tensor:
        y = super().forward(x)
        if pair is None:
            return y
        down, up = pair
        rows = x.reshape(down.shape[0], -1, x.shape[-1])
        return y + torch.bmm(torch.bmm(rows, down.mT), up.mT).reshape(y.shape)


class Stream(NamedTuple):
    """What runs through the layers, and what steers them."""

    tokens: Tensor  # (B, words + patches, dim)
    words: int  # how many of them are text, padding included; they come first
    t: Tensor  # (B, 256), of the noise level
    rope: Tensor  # (2, words + patches, head_dim / 2), cosines and sines


class Backbone(nn.Module):
    """Noisy latents, noise level and text -> velocity, as the host's model object computes it."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        c = self.config = config
        patch = c.patch_size**2 * c.in_channels
        self.x_embedder = LoRALinear(patch, c.dim)
        self.noise_refiner = nn.ModuleList(Block(c, True) for _ in range(c.n_refiner_layers))
        self.context_refiner = nn.ModuleList(Block(c, False) for _ in range(c.n_refiner_layers))
        self.t_embedder = _TimeEmbedder(c.dim)
        self.cap_embedder = nn.Sequential(
            nn.RMSNorm(c.cap_feat_dim, c.norm_eps), LoRALinear(c.cap_feat_dim, c.dim)
        )
        self.layers = nn.ModuleList(Block(c, True) for _ in range(c.n_layers))
        self.final_layer = _FinalLayer(c.dim, patch)
        self.x_pad_token = nn.Parameter(torch.zeros(1, c.dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, c.dim))

    def forward(
        self, x: Tensor, sigma: Tensor, context: Tensor, lora: Mapping[str, LayerPair] | None = None
    ) -> Tensor:
        """Velocity (B, C, H, W), noise - latent: see `forward_tapped` for the arguments."""
        return self.forward_tapped(x, sigma, context, lora)[0]

    def forward_tapped(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        lora: Mapping[str, LayerPair] | None = None,
        tap: int = -1,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: noisy latents (B, C, H, W), H and W multiples of the patch, their patches a multiple of
                `pad_tokens_multiple` (the demo world never needs the host's image padding).
            sigma: noise level (B,) in 0..1; x = (1 - sigma) * latent + sigma * noise.
            context: text conditioning (B, T, cap_feat_dim), T a multiple of `pad_tokens_multiple`.
            lora: module path -> pair; rows of the batch are grouped in order, B a multiple of S.
            tap: index of the layer whose image tokens come along, for an auxiliary loss.

        Returns:
            Velocity (B, C, H, W): noise - latent; and the tapped tokens (B, rows * columns, dim).
        """
        lora = lora or {}
        stream = self.enter(x, sigma, context, lora)
        both = tapped = stream.tokens
        for i, block in enumerate(self.layers):
            both = block(both, stream.rope, stream.t, lora, f"layers.{i}")
            tapped = both if i == tap % len(self.layers) else tapped
        return self.leave(both, stream, x.shape, lora), tapped[:, stream.words :]

    def enter(self, x: Tensor, sigma: Tensor, context: Tensor, lora: Mapping[str, LayerPair]) -> Stream:
        """What goes into `layers`: the refined tokens of text and picture. Arguments as in `forward_tapped`."""
        c = self.config
        rows, columns = (side // c.patch_size for side in x.shape[-2:])
        if (rows * columns) % c.pad_tokens_multiple or context.shape[1] % c.pad_tokens_multiple:
            raise ValueError(
                f"tokens must be a multiple of {c.pad_tokens_multiple}: {rows}x{columns}, text {context.shape[1]}"
            )
        t = self.t_embedder((1 - sigma) * c.time_scale)
        text = self.cap_embedder[1](self.cap_embedder[0](context), lora.get("cap_embedder.1"))
        text_rope, image_rope = (r.to(x.device) for r in _rotations(c, context.shape[1], rows, columns))
        for i, block in enumerate(self.context_refiner):
            text = block(text, text_rope, None, lora, f"context_refiner.{i}")
        image = self.x_embedder(patches_of(x, c.patch_size), lora.get("x_embedder"))
        for i, block in enumerate(self.noise_refiner):
            image = block(image, image_rope, t, lora, f"noise_refiner.{i}")
        rope = torch.cat([text_rope, image_rope], 1)
        return Stream(torch.cat([text, image], 1), text.shape[1], t, rope)

    def leave(
        self, tokens: Tensor, stream: Stream, shape: torch.Size, lora: Mapping[str, LayerPair]
    ) -> Tensor:
        """What comes out of `layers` -> velocity of `shape` (B, C, H, W)."""
        patch = self.config.patch_size
        out = self.final_layer(tokens[:, stream.words :], stream.t, lora)
        batch, channels, height, width = shape
        out = out.view(batch, height // patch, width // patch, patch, patch, channels)
        return -out.permute(0, 5, 1, 3, 2, 4).reshape(shape)


def patches_of(x: Tensor, side: int) -> Tensor:
    """Latents (B, C, H, W) -> patches in row order, (B, H * W / side^2, side * side * C)."""
    batch, channels, height, width = x.shape
    patches = x.view(batch, channels, height // side, side, width // side, side)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Block(nn.Module):
    """A layer, under the names of the host's JointTransformerBlock. Tokens (B, T, dim) -> the same."""

    def __init__(self, c: BackboneConfig, modulated: bool) -> None:
        super().__init__()
        self.attention = Attention(c)
        self.feed_forward = _FeedForward(c)
        self.attention_norm1 = nn.RMSNorm(c.dim, c.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(c.dim, c.norm_eps)
        self.attention_norm2 = nn.RMSNorm(c.dim, c.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(c.dim, c.norm_eps)
        self.adaLN_modulation = nn.Sequential(LoRALinear(min(c.dim, 256), 4 * c.dim)) if modulated else None

    def forward(
        self, x: Tensor, rope: Tensor, t: Tensor | None, lora: Mapping[str, LayerPair], path: str
    ) -> Tensor:
        if self.adaLN_modulation is None or t is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), rope, lora, path))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x), lora, path))
        mod = self.adaLN_modulation[0](t, lora.get(f"{path}.adaLN_modulation.0")).unsqueeze(1)
        scale_a, gate_a, scale_f, gate_f = mod.chunk(4, -1)
        h = self.attention(self.attention_norm1(x) * (1 + scale_a), rope, lora, path)
        x = x + gate_a.tanh() * self.attention_norm2(h)
        h = self.feed_forward(self.ffn_norm1(x) * (1 + scale_f), lora, path)
        return x + gate_f.tanh() * self.ffn_norm2(h)


class Attention(nn.Module):
    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.heads = c.n_heads
        self.qkv = LoRALinear(c.dim, 3 * c.dim, bias=False)
        self.out = LoRALinear(c.dim, c.dim, bias=False)
        self.q_norm = nn.RMSNorm(c.dim // c.n_heads, 1e-5)
        self.k_norm = nn.RMSNorm(c.dim // c.n_heads, 1e-5)

    def forward(self, x: Tensor, rope: Tensor, lora: Mapping[str, LayerPair], path: str) -> Tensor:
        return self.joined(*self.projected(x, rope, lora, path), lora, path)

    def projected(
        self, x: Tensor, rope: Tensor, lora: Mapping[str, LayerPair], path: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T, dim) -> q, k, with their positions, and v: (B, heads, T, head_dim) each."""
        qkv = self.qkv(x, lora.get(f"{path}.attention.qkv")).view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return _rotate(self.q_norm(q), rope), _rotate(self.k_norm(k), rope), v

    def joined(self, q: Tensor, k: Tensor, v: Tensor, lora: Mapping[str, LayerPair], path: str) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(y, lora.get(f"{path}.attention.out"))


class _FeedForward(nn.Module):
    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.w1 = LoRALinear(c.dim, c.ffn_dim, bias=False)
        self.w2 = LoRALinear(c.ffn_dim, c.dim, bias=False)
        self.w3 = LoRALinear(c.dim, c.ffn_dim, bias=False)

    def forward(self, x: Tensor, lora: Mapping[str, LayerPair], path: str) -> Tensor:
        path = f"{path}.feed_forward"
        gate = F.silu(self.w1(x, lora.get(f"{path}.w1"))) * self.w3(x, lora.get(f"{path}.w3"))
        return self.w2(gate, lora.get(f"{path}.w2"))


class _TimeEmbedder(nn.Module):
    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        hidden = min(dim, 1024)
        self.mlp = nn.Sequential(nn.Linear(frequencies, hidden), nn.SiLU(), nn.Linear(hidden, 256))
        self.frequencies = frequencies

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = t[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class _FinalLayer(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.linear = LoRALinear(dim, patch)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), LoRALinear(min(dim, 256), dim))

    def forward(self, x: Tensor, t: Tensor, lora: Mapping[str, LayerPair]) -> Tensor:
        scale = self.adaLN_modulation[1](F.silu(t), lora.get("final_layer.adaLN_modulation.1")).unsqueeze(1)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale)
        return self.linear(x, lora.get("final_layer.linear"))


@functools.lru_cache(maxsize=8)
def _rotations(c: BackboneConfig, text: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (2, tokens, head_dim / 2) of text and image tokens: the host's three-axis rotary positions."""
    words = torch.zeros(text, 3)
    words[:, 0] = torch.arange(text) + 1
    patches = torch.zeros(rows, columns, 3)
    patches[..., 0] = text + 1
    patches[..., 1] = torch.arange(rows)[:, None]
    patches[..., 2] = torch.arange(columns)
    return _angles(c, words), _angles(c, patches.flatten(0, 1))


def _angles(c: BackboneConfig, positions: Tensor) -> Tensor:
    parts = []
    for axis, width in enumerate(c.axes_dims):
        rates = c.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        parts.append(positions[:, axis, None].double() * rates)
    angles = torch.cat(parts, -1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (B, heads, tokens, head_dim)."""
    cos, sin = rope
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
