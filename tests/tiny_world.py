"""The demo world with random weights, in files named as the shipped ones: for tests that need no skill."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from i2l.i2l_core.demo import files
from i2l.i2l_core.demo.autoencoder import PATCH, build_decoder, fit_basis
from i2l.i2l_core.demo.backbone import Backbone, BackboneConfig
from i2l.i2l_core.demo.flux2 import Flux2Backbone, Flux2Config
from i2l.i2l_core.demo.infinity import CODER, TRANSFORMER
from i2l.i2l_core.demo.text import TextEncoder
from i2l.i2l_core.encoders import SQUARE, EncoderConfig, VisionEncoder
from i2l.i2l_core.infinity.coder import Coder
from i2l.i2l_core.infinity.transformer import Infinity
from i2l.i2l_core.predictors.query.config import LayerSpec, QueryConfig
from i2l.i2l_core.predictors.query.file import save_predictor
from i2l.i2l_core.predictors.query.network import QueryNetwork
from i2l.tools.host import PACK_FOLDER, ROOT

ENCODER = EncoderConfig(
    SQUARE,
    {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 16,
        "image_size": 64,
    },
    image_size=64,
)


def random_demo_weights(folder: Path, seed: int = 0) -> Path:
    """Write backbone, VAE and predictor; every output depends on every input. Returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone, text = Backbone(BackboneConfig()), TextEncoder()
        _randomise(backbone)
        files.save_backbone(folder, backbone, text)
        pictures = torch.rand(8, 4 * PATCH, 4 * PATCH, 3)
        files.save_vae(folder, fit_basis(pictures), build_decoder())
        save_random_predictor(folder / files.PREDICTOR)
        flux2 = Flux2Backbone(Flux2Config())
        _randomise(flux2)
        files.save_flux2(folder, flux2)
        infinity = Infinity(TRANSFORMER)
        _randomise_infinity(infinity)
        files.save_infinity(folder, infinity)
        files.save_infinity_vae(folder, Coder(CODER))
    return folder


def save_random_predictor(
    path: Path, base_model: str = "i2l-tiny", dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A small predictor for the tiny backbone: whole weights, and rows of fused ones."""
    predictor, encoder = QueryNetwork(predictor_config()), VisionEncoder(ENCODER)
    for name, parameter in predictor.named_parameters():
        if name.startswith("heads.B"):
            nn.init.normal_(parameter, std=0.1)
    save_predictor(path, predictor.to(dtype), encoder.to(dtype), {"base_model": {"id": base_model}})
    return path


def predictor_config() -> QueryConfig:
    dim, ffn = BackboneConfig().dim, BackboneConfig().ffn_dim
    layers = [LayerSpec("layers.0.attention.qkv", (i * dim, dim), dim, dim) for i in (0, 2)]  # q and v
    for i in range(BackboneConfig().n_layers):
        if i:
            layers.append(LayerSpec(f"layers.{i}.attention.qkv", None, dim, 3 * dim))
        layers.append(LayerSpec(f"layers.{i}.feed_forward.w2", None, ffn, dim))
    return QueryConfig(
        hidden=32, blocks=1, heads=2, code=8, rank=2, token_dim=32, mlp_ratio=2.0, layers=tuple(layers)
    )


def _randomise(backbone: nn.Module) -> None:
    """Norm weights near one, pad tokens not zero, the rest as torch starts it."""
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.1)
        elif "pad_token" in name:
            nn.init.normal_(parameter)


def _randomise_infinity(network: Infinity) -> None:
    """Every weight matters; k has no bias, as in a released file."""
    for name, p in network.named_parameters():
        nn.init.normal_(p, std=p.shape[-1] ** -0.5 if p.ndim == 2 else 0.2)
        if name.endswith(("norm.weight", "scale_mul_1H11")):
            nn.init.normal_(p, 1.0, 0.1)
        elif name.endswith("sa.qk.bias"):
            nn.init.zeros_(p[TRANSFORMER.width :])
        elif name.endswith("ca.mat_kv.bias"):
            nn.init.zeros_(p[: TRANSFORMER.width])


def link_pack_with_weights(base: Path) -> None:
    """Before a server starts on `base`: a copy of the pack with random weights while it has none."""
    shipped = (files.BACKBONE, files.VAE, files.PREDICTOR)
    if all((files.WEIGHTS / name).exists() for name in shipped):
        return
    copy = base / "pack"
    for name in ("nodes", "i2l_core", "web", "locales", "workflows"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", copy)
    random_demo_weights(copy / files.WEIGHTS.relative_to(ROOT))
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / PACK_FOLDER).symlink_to(copy, target_is_directory=True)
