"""Host models with random weights, from tiny to full size, for measurements that need no skill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from i2l_core.base_models import ARCHITECTURES
from i2l_core.demo.backbone import BackboneConfig
from i2l_core.lora import LoRA, LowRank
from i2l_core.predictors.query.config import LayerSpec


@dataclass(frozen=True)
class Size:
    """A network of the host, and what one step of it gets."""

    kind: str  # class in comfy.supported_models
    config: dict[str, Any]
    latent: tuple[int, int, int]  # (C, h, w)
    words: int  # text tokens
    text_dim: int


def _flux2(hidden: int, double: int, single: int, text_dim: int) -> dict[str, Any]:
    return {
        "image_model": "flux2", "axes_dim": [32] * 4, "num_heads": hidden // 128, "mlp_ratio": 3.0, "theta": 2000,
        "out_channels": 128, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
        "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
        "in_channels": 128, "hidden_size": hidden, "context_in_dim": text_dim, "patch_size": 1, "vec_in_dim": None,
        "depth": double, "depth_single_blocks": single, "guidance_embed": False, "yak_mlp": False,
        "txt_norm": False,
    }  # fmt: skip


_Z_IMAGE_6B = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30,
    "n_refiner_layers": 2, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip

_HIDREAM_O1 = {"image_model": "hidream_o1"}  # the sizes are the host's own

_TINY = BackboneConfig()

SIZES = {
    "flux2-tiny": Size("Flux2", _flux2(256, 2, 4, 128), (128, 8, 8), 512, 128),
    "flux2-small": Size("Flux2", _flux2(256, 2, 4, 128), (128, 16, 16), 512, 128),
    "z-image-tiny": Size(
        "ZImage", {"image_model": "lumina2", **_TINY.host_config()}, (16, 16, 16), 16, _TINY.cap_feat_dim
    ),
    "flux2-4b": Size("Flux2", _flux2(3072, 5, 20, 7680), (128, 64, 64), 512, 7680),
    "z-image-6b": Size("ZImage", _Z_IMAGE_6B, (16, 128, 128), 128, 2560),
    "hidream-o1-8b": Size("HiDreamO1", _HIDREAM_O1, (3, 2048, 2048), 64, 1),
}


def klein_4b_layers() -> tuple[LayerSpec, ...]:
    """Every Linear of the 5 double and 20 single blocks of FLUX.2 klein 4B, with its (input, output) width."""
    d = 3072
    double = {"attn.qkv": (d, 3 * d), "attn.proj": (d, d), "mlp.0": (d, 6 * d), "mlp.2": (3 * d, d)}
    layers = [
        LayerSpec(f"double_blocks.{i}.{side}_{name}", None, *shape)
        for i in range(5)
        for side in ("img", "txt")
        for name, shape in double.items()
    ]
    single = {"linear1": (d, 9 * d), "linear2": (4 * d, d)}
    layers += [
        LayerSpec(f"single_blocks.{i}.{n}", None, *shape) for i in range(20) for n, shape in single.items()
    ]
    return tuple(layers)


def build(size: Size, dtype: torch.dtype) -> Any:
    """A real MODEL with random weights on its offload device."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, size.kind)(dict(size.config))
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.diffusion_model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            else:
                weight.normal_(std=0.02, generator=gen)
    return comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def random_lora(model: Any, rank: int, seed: int) -> LoRA:
    """A LoRA on every layer of the model's architecture, q, k and v on their own rows."""
    from i2l_core.host.patch import weights_of

    weights = weights_of(model)
    architecture = next(architecture for architecture in ARCHITECTURES if architecture.matches(weights))
    gen = torch.Generator().manual_seed(seed)
    return LoRA(
        {
            slot.target: LowRank(
                torch.randn(rank, slot.d_in, generator=gen) / slot.d_in**0.5,
                torch.randn(slot.d_out, rank, generator=gen) * 0.01,
            )
            for slot in architecture.adapted_layers(weights)
        }
    )
