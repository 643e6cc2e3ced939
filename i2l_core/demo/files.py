"""The weights of the demo world: file names, writing, and reading without the host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import I2LError
from ..files.safetensors import read_tensor
from ..infinity.coder import Coder
from ..infinity.files import released_weights, transformer_weights
from ..infinity.transformer import Infinity
from .autoencoder import PatchBasis, build_decoder, build_encoder, host_weights
from .backbone import Backbone, BackboneConfig
from .flux2 import Flux2Backbone, Flux2Config
from .infinity import CODER, TRANSFORMER
from .judge import Judge
from .text import TextEncoder

WEIGHTS = Path(__file__).parent / "weights"
BACKBONE, VAE, PREDICTOR, JUDGE = (
    "backbone.safetensors",
    "vae.safetensors",
    "predictor.safetensors",
    "judge.safetensors",
)
FLUX2, FLUX2_PREDICTOR = "flux2.safetensors", "flux2_predictor.safetensors"
INFINITY, INFINITY_VAE = "infinity.safetensors", "infinity_vae.safetensors"
BRIGHTNESS, STRUCTURE = (
    "flux2_brightness.safetensors",
    "flux2_structure.safetensors",
)  # as templates are published


def save_backbone(folder: Path, backbone: Backbone, text: TextEncoder) -> Path:
    """bfloat16; tensors "backbone.*" under the host's names and "text.*"; the config in the metadata."""
    tensors = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    tensors |= {f"text.{k}": v for k, v in text.state_dict().items()}
    meta = {"format": "i2l-demo-backbone", "version": 1, "config": asdict(backbone.config)}
    return _save(folder / BACKBONE, tensors, meta, torch.bfloat16)


def load_backbone(folder: Path = WEIGHTS) -> tuple[Backbone, TextEncoder]:
    """The training-side networks in float32."""
    tensors, meta = read(folder / BACKBONE)
    config = meta["config"]
    backbone = Backbone(BackboneConfig(**{**config, "axes_dims": tuple(config["axes_dims"])}))
    text = TextEncoder()
    for net, prefix in ((backbone, "backbone."), (text, "text.")):
        net.load_state_dict({k: v.float() for k, v in part(tensors, prefix).items()})
    return backbone.eval(), text.eval()


def save_flux2(folder: Path, network: Flux2Backbone) -> Path:
    """bfloat16, under the host's names; the config in the metadata."""
    meta = {"format": "i2l-demo-flux2", "version": 1, "config": asdict(network.config)}
    return _save(folder / FLUX2, dict(network.state_dict()), meta, torch.bfloat16)


def load_flux2(folder: Path = WEIGHTS) -> Flux2Backbone:
    """The training-side network in float32."""
    tensors, meta = read(folder / FLUX2)
    network = Flux2Backbone(Flux2Config(**meta["config"]))
    network.load_state_dict({k: v.float() for k, v in tensors.items()})
    return network.eval()


def save_flux2_predictor(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], step: int
) -> Path:
    """bfloat16; `config`: a QueryConfig as JSON. The encoder is that in PREDICTOR."""
    meta = {"format": "i2l-demo-flux2-predictor", "version": 1, "predictor": config, "steps": step}
    return _save(folder / FLUX2_PREDICTOR, dict(tensors), meta, torch.bfloat16)


def save_vae(folder: Path, basis: PatchBasis, decoder: nn.Module) -> Path:
    """float16: rounds the encoder's exact map by less than a thousandth of a latent's spread."""
    return _save(
        folder / VAE, host_weights(basis, decoder), {"format": "i2l-demo-vae", "version": 1}, torch.float16
    )


def load_vae(folder: Path = WEIGHTS) -> tuple[nn.Sequential, nn.Sequential]:
    """(encoder, decoder) between pictures (B, 3, H, W) in 0..1 and model latents, float32."""
    tensors, _ = read(folder / VAE)
    encoder, decoder = build_encoder(), build_decoder()
    for net, prefix in ((encoder, "taesd_encoder."), (decoder, "taesd_decoder.")):
        net.load_state_dict({k: v.float() for k, v in part(tensors, prefix).items()})
    return encoder.eval(), decoder.eval()


def save_infinity_vae(folder: Path, coder: Coder) -> Path:
    """bfloat16, under the names of i2l_core/infinity."""
    meta = {"format": "i2l-demo-infinity-vae", "version": 1}
    return _save(folder / INFINITY_VAE, dict(coder.state_dict()), meta, torch.bfloat16)


def load_infinity_vae(folder: Path = WEIGHTS) -> Coder:
    """The training-side network in float32."""
    coder = Coder(CODER)
    coder.load_state_dict({k: v.float() for k, v in read(folder / INFINITY_VAE)[0].items()})
    return coder.eval()


def save_infinity(folder: Path, network: Infinity) -> Path:
    """The released form: large matrices of the blocks in float8 e4m3, the rest in bfloat16."""
    weights = {
        name: tensor.to(torch.float8_e4m3fn)
        if name.startswith("blocks.") and tensor.ndim == 2
        else tensor.to(torch.bfloat16)
        for name, tensor in released_weights(network.state_dict()).items()
    }
    return _save(folder / INFINITY, weights, {"format": "i2l-demo-infinity", "version": 1})


def load_infinity(folder: Path = WEIGHTS) -> Infinity:
    """The training-side network in float32."""
    network = Infinity(TRANSFORMER)
    weights = transformer_weights(read(folder / INFINITY)[0])
    network.load_state_dict({k: v.float() for k, v in weights.items()})
    return network.eval()


def save_judge(folder: Path, judge: Judge) -> Path:
    return _save(
        folder / JUDGE, dict(judge.state_dict()), {"format": "i2l-demo-judge", "version": 1}, torch.bfloat16
    )


def load_judge(folder: Path = WEIGHTS) -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in read(folder / JUDGE)[0].items()})
    return judge.eval()


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """All tensors and the metadata entry "i2l". Raises I2LError if the pack was installed without its weights."""
    if not path.is_file():
        raise I2LError(
            f"the demo model lacks {path.name} in {path.parent}: install the pack again, with its weights"
        )
    with safe_open(path, "pt") as file:
        return {k: read_tensor(file, k) for k in file.keys()}, json.loads(
            (file.metadata() or {}).get("i2l", "{}")
        )


def _save(path: Path, tensors: dict[str, Tensor], meta: dict, dtype: torch.dtype | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v.detach().to(dtype or v.dtype).contiguous() for k, v in tensors.items()}
    save_file(kept, path, {"i2l": json.dumps(meta)})
    return path
