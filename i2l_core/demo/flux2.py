"""The demo world's FLUX.2: the host's Flux class with global modulation, tensor for tensor, for training.

The parameter names and the forward are those of ComfyUI's `Flux` as FLUX.2 configures it, so the weights load there as
they are; a test proves that both give the same output. It is differentiable throughout, every Linear can take one LoRA
per group of rows, and every attention can see further keys and values (Diffusion Templates), or give its own away.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kv_caches.dit import REFERENCE_INDEX, flux2_arguments
from .backbone import LayerPair, LoRALinear, patches_of

KeysValues = tuple[Tensor, Tensor]  # (B or 1, T, heads, head_dim) each


@dataclass(frozen=True)
class Flux2Config:
    """Sizes; the names are those of the host's FluxParams."""

    hidden_size: int = 160
    num_heads: int = 5
    depth: int = 1
    depth_single_blocks: int = 6
    context_in_dim: int = 128
    in_channels: int = 16
    patch_size: int = 2
    mlp_ratio: float = 3.0
    theta: int = 2000

    def __post_init__(self) -> None:
        if self.hidden_size % (8 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 8 * num_heads {self.num_heads}: four axes of "
                "rotation in each head"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def patch(self) -> int:
        """Numbers in a patch of the latent."""
        return self.in_channels * self.patch_size**2

    def host_config(self) -> dict:
        """What ComfyUI's `supported_models.Flux2` takes to build the same network."""
        return asdict(self) | {
            "image_model": "flux2",
            "out_channels": self.in_channels,
            "yak_mlp": False,
            "txt_norm": False,
            **flux2_arguments(self.head_dim),
        }


@dataclass(frozen=True, eq=False)
class Extras:
    """What a forward takes beside its inputs, and where it leaves its own keys and values."""

    lora: Mapping[str, LayerPair] = field(default_factory=dict)  # module path -> pair
    cache: Mapping[str, KeysValues] = field(default_factory=dict)  # block -> keys and values that it sees too
    seen: dict[str, KeysValues] | None = None  # block -> its own, written here


class Flux2Backbone(nn.Module):
    """Noisy latents, noise level and text -> velocity, as the host's model object computes it."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        c = self.config = config
        wide = c.hidden_size
        self.img_in = LoRALinear(c.patch, wide, bias=False)
        self.time_in = _Time(wide)
        self.txt_in = LoRALinear(c.context_in_dim, wide, bias=False)
        self.double_blocks = nn.ModuleList(_Double(c) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(_Single(c) for _ in range(c.depth_single_blocks))
        self.final_layer = _Final(wide, c.patch)
        self.double_stream_modulation_img = _Modulation(wide, 6)
        self.double_stream_modulation_txt = _Modulation(wide, 6)
        self.single_stream_modulation = _Modulation(wide, 3)

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor, extras: Extras | None = None) -> Tensor:
        """Velocity (B, C, H, W), noise - latent: see `forward_tapped` for the arguments."""
        return self.forward_tapped(x, sigma, context, extras)[0]

    def forward_tapped(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        extras: Extras | None = None,
        tap: int = -1,
        index: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: noisy latents (B, C, H, W), H and W multiples of the patch.
            sigma: noise level (B,) in 0..1; x = (1 - sigma) * latent + sigma * noise.
            context: text conditioning (B, T, context_in_dim).
            tap: index of the single block whose image tokens come along, for an auxiliary loss.
            index: first rotary coordinate of the image tokens.

        Returns:
            Velocity (B, C, H, W): noise - latent; and the tapped tokens (B, rows * columns, hidden_size).
        """
        c, extras = self.config, extras or Extras()
        lora = extras.lora
        rows, columns = (side // c.patch_size for side in x.shape[-2:])
        rope = _rotations(c, context.shape[1], rows, columns, index).to(x.device)
        t = F.silu(self.time_in(sigma, lora))
        image = self.img_in(_flux_patches(x, c.patch_size), lora.get("img_in"))
        text = self.txt_in(context, lora.get("txt_in"))
        steer = (
            self.double_stream_modulation_img(t, lora, "double_stream_modulation_img"),
            self.double_stream_modulation_txt(t, lora, "double_stream_modulation_txt"),
        )
        for i, block in enumerate(self.double_blocks):
            image, text = block(image, text, steer, rope, extras, i)
        words = text.shape[1]
        both = tapped = torch.cat([text, image], 1)
        single = self.single_stream_modulation(t, lora, "single_stream_modulation")
        for i, block in enumerate(self.single_blocks):
            both = block(both, single, rope, extras, i)
            tapped = both if i == tap % len(self.single_blocks) else tapped
        out = self.final_layer(both[:, words:], t, lora)
        side = c.patch_size
        out = out.view(x.shape[0], rows, columns, c.in_channels, side, side)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape), tapped[:, words:]

    def keys_values(self, picture: Tensor, context: Tensor) -> dict[str, KeysValues]:
        """What a control network gives away: latents (B, C, H, W) and text -> keys and values of every block."""
        seen: dict[str, KeysValues] = {}
        zero = torch.zeros(picture.shape[0], device=picture.device)
        self.forward_tapped(picture, zero, context, Extras(seen=seen), index=REFERENCE_INDEX)
        return seen


def _flux_patches(x: Tensor, side: int) -> Tensor:
    """Latents (B, C, H, W) -> patches in row order (B, H * W / side^2, C * side * side), channels first."""
    patches = patches_of(x, side)  # side, side, C
    return patches.unflatten(-1, (side * side, -1)).mT.flatten(-2)


class _Modulation(nn.Module):
    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = LoRALinear(dim, parts * dim, bias=False)

    def forward(self, t: Tensor, lora: Mapping[str, LayerPair], path: str) -> tuple[Tensor, ...]:
        """(B, dim) after SiLU -> shift, scale, gate, once or twice, (B, 1, dim) each."""
        return self.lin(t, lora.get(f"{path}.lin"))[:, None].chunk(self.parts, -1)


class _Time(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_layer = LoRALinear(256, dim, bias=False)
        self.out_layer = LoRALinear(dim, dim, bias=False)

    def forward(self, t: Tensor, lora: Mapping[str, LayerPair]) -> Tensor:
        rates = torch.exp(-math.log(10000) * torch.arange(128, device=t.device, dtype=torch.float32) / 128)
        angles = 1000 * t[:, None].float() * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return self.out_layer(
            F.silu(self.in_layer(waves, lora.get("time_in.in_layer"))), lora.get("time_in.out_layer")
        )


class _Norms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm = nn.RMSNorm(width, 1e-6)
        self.key_norm = nn.RMSNorm(width, 1e-6)


class _Stream(nn.Module):
    """Attention of one of the two streams of a double block."""

    def __init__(self, c: Flux2Config) -> None:
        super().__init__()
        self.heads = c.num_heads
        self.qkv = LoRALinear(c.hidden_size, 3 * c.hidden_size, bias=False)
        self.norm = _Norms(c.head_dim)
        self.proj = LoRALinear(c.hidden_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor, lora: Mapping[str, LayerPair], path: str) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x, lora.get(f"{path}.qkv"))
        return _heads(qkv, self.heads, self.norm)


class _Double(nn.Module):
    def __init__(self, c: Flux2Config) -> None:
        super().__init__()
        self.img_attn, self.txt_attn = _Stream(c), _Stream(c)
        self.img_mlp, self.txt_mlp = _mlp(c), _mlp(c)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        steer: tuple[tuple[Tensor, ...], ...],
        rope: Tensor,
        extras: Extras,
        i: int,
    ) -> tuple[Tensor, Tensor]:
        lora, path = extras.lora, f"double_blocks.{i}"
        of_image, of_text = steer
        q1, k1, v1 = self.txt_attn(_modulate(text, *of_text[:2]), lora, f"{path}.txt_attn")
        q2, k2, v2 = self.img_attn(_modulate(image, *of_image[:2]), lora, f"{path}.img_attn")
        q, k, v = torch.cat([q1, q2], 2), torch.cat([k1, k2], 2), torch.cat([v1, v2], 2)
        y = _attend(q, k, v, rope, extras, f"double_{i}")
        words = text.shape[1]
        image = image + of_image[2] * self.img_attn.proj(y[:, words:], lora.get(f"{path}.img_attn.proj"))
        image = image + of_image[5] * _run_mlp(
            self.img_mlp, _modulate(image, *of_image[3:5]), lora, f"{path}.img_mlp"
        )
        text = text + of_text[2] * self.txt_attn.proj(y[:, :words], lora.get(f"{path}.txt_attn.proj"))
        text = text + of_text[5] * _run_mlp(
            self.txt_mlp, _modulate(text, *of_text[3:5]), lora, f"{path}.txt_mlp"
        )
        return image, text


class _Single(nn.Module):
    def __init__(self, c: Flux2Config) -> None:
        super().__init__()
        self.heads, self.wide, self.mlp = c.num_heads, c.hidden_size, c.mlp
        self.linear1 = LoRALinear(c.hidden_size, 3 * c.hidden_size + 2 * c.mlp, bias=False)
        self.linear2 = LoRALinear(c.hidden_size + c.mlp, c.hidden_size, bias=False)
        self.norm = _Norms(c.head_dim)

    def forward(self, x: Tensor, steer: tuple[Tensor, ...], rope: Tensor, extras: Extras, i: int) -> Tensor:
        lora, path = extras.lora, f"single_blocks.{i}"
        shift, scale, gate = steer
        qkv, mlp = self.linear1(_modulate(x, shift, scale), lora.get(f"{path}.linear1")).split(
            [3 * self.wide, 2 * self.mlp], -1
        )
        y = _attend(*_heads(qkv, self.heads, self.norm), rope, extras, f"single_{i}")
        return x + gate * self.linear2(torch.cat([y, _gated(mlp)], -1), lora.get(f"{path}.linear2"))


class _Final(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.linear = LoRALinear(dim, patch, bias=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), LoRALinear(dim, 2 * dim, bias=False))

    def forward(self, x: Tensor, t: Tensor, lora: Mapping[str, LayerPair]) -> Tensor:
        """t: after SiLU already."""
        mod = self.adaLN_modulation[1](t, lora.get("final_layer.adaLN_modulation.1"))[:, None]
        return self.linear(_modulate(x, *mod.chunk(2, -1)), lora.get("final_layer.linear"))


def _mlp(c: Flux2Config) -> nn.Sequential:
    return nn.Sequential(
        LoRALinear(c.hidden_size, 2 * c.mlp, bias=False),
        nn.Identity(),  # the host's activation; `_run_mlp` does it
        LoRALinear(c.mlp, c.hidden_size, bias=False),
    )


def _run_mlp(mlp: nn.Sequential, x: Tensor, lora: Mapping[str, LayerPair], path: str) -> Tensor:
    return mlp[2](_gated(mlp[0](x, lora.get(f"{path}.0"))), lora.get(f"{path}.2"))


def _gated(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _heads(qkv: Tensor, heads: int, norm: _Norms) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3 * dim) -> q, k, v (B, heads, T, head_dim), q and k normalised."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return norm.query_norm(q), norm.key_norm(k), v


def _attend(q: Tensor, k: Tensor, v: Tensor, rope: Tensor, extras: Extras, block: str) -> Tensor:
    """(B, heads, T, head_dim) each -> (B, T, dim). Keys of a cache are not rotated: they were when they were made."""
    q, k = _rotate(q, rope), _rotate(k, rope)
    if extras.seen is not None:
        extras.seen[block] = (k.transpose(1, 2), v.transpose(1, 2))
    if pair := extras.cache.get(block):
        more_k, more_v = (part.transpose(1, 2).expand(len(q), -1, -1, -1) for part in pair)
        k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@functools.lru_cache(maxsize=8)
def _rotations(c: Flux2Config, text: int, rows: int, columns: int, index: float) -> Tensor:
    """Cosines and sines (2, tokens, head_dim / 2): text at (0, 0, 0, i), patches at (index, row, column, 0)."""
    words = torch.zeros(text, 4)
    words[:, 3] = torch.arange(text)
    patches = torch.zeros(rows, columns, 4)
    patches[..., 0] = index
    patches[..., 1] = torch.arange(rows)[:, None]
    patches[..., 2] = torch.arange(columns)
    positions = torch.cat([words, patches.flatten(0, 1)]).double()
    width = c.head_dim // 4
    rates = float(c.theta) ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = (positions[..., None] * rates).flatten(1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (B, heads, tokens, head_dim)."""
    cos, sin = rope
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
