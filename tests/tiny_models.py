"""Tiny real MODELs of every network that LoRAs are predicted for, with random weights, and LoRAs for them."""

from __future__ import annotations

import json
from typing import Any

import torch

from i2l.i2l_core.lora import LoRA, LowRank, Target

CONFIGS = {
    "lumina2": dict(
        image_model="lumina2",
        patch_size=2,
        in_channels=16,
        dim=256,
        cap_feat_dim=32,
        n_layers=6,
        n_refiner_layers=1,
        qk_norm=True,
        n_heads=2,
        n_kv_heads=2,
        axes_dims=[32, 48, 48],
        axes_lens=[1536, 512, 512],
        rope_theta=256.0,
        ffn_dim_multiplier=8 / 3,
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=32,
    ),
    "flux2": dict(
        image_model="flux2",
        axes_dim=[32] * 4,
        num_heads=2,
        mlp_ratio=3.0,
        theta=2000,
        out_channels=128,
        global_modulation=True,
        mlp_silu_act=True,
        qkv_bias=False,
        ops_bias=False,
        default_ref_method="index",
        ref_index_scale=10.0,
        txt_ids_dims=[3],
        in_channels=128,
        hidden_size=256,
        context_in_dim=48,
        patch_size=1,
        vec_in_dim=None,
        depth=1,
        depth_single_blocks=2,
        guidance_embed=False,
        yak_mlp=False,
        txt_norm=False,
    ),
    "hidream_o1": dict(
        image_model="hidream_o1",
        text_config_overrides=dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=128,
        ),
        vision_config_overrides=dict(
            hidden_size=32, num_heads=2, intermediate_size=64, depth=1, num_position_embeddings=64
        ),
    ),
    "qwen_image": dict(
        image_model="qwen_image",
        in_channels=64,
        num_layers=2,
        num_attention_heads=2,
        joint_attention_dim=48,
    ),
}

RELEASES = {  # of those, with what only some releases have
    "z_image_omni": {**CONFIGS["lumina2"], "siglip_feat_dim": 24},
    "qwen_image_2511": {**CONFIGS["qwen_image"], "default_ref_method": "index_timestep_zero"},
    "qwen_image_layered": {
        **CONFIGS["qwen_image"],
        "default_ref_method": "negative_index",
        "use_additional_t_cond": True,
    },
}

LATENTS = {  # (C, [T,] H, W), of 16 image tokens; of 4 for HiDream-O1
    "lumina2": (16, 8, 8),
    "flux2": (128, 4, 4),
    "hidream_o1": (3, 64, 64),
    "qwen_image": (16, 1, 8, 8),
    "z_image_omni": (16, 8, 8),
    "qwen_image_2511": (16, 1, 8, 8),
    "qwen_image_layered": (16, 3, 8, 8),
}
_TEXT_WIDTH = ("cap_feat_dim", "context_in_dim", "joint_attention_dim")  # what each network calls it


def conditioning(name: str, seed: int, length: int = 7) -> list[Any]:
    """A CONDITIONING of random text for a network."""
    gen = torch.Generator().manual_seed(seed)
    if name == "hidream_o1":
        ids = torch.randint(5, 900, (1, length), generator=gen)
        return [
            [torch.zeros(1, 1, 1), {"text_input_ids": torch.cat([ids, torch.tensor([[151669, 151673]])], 1)}]
        ]
    config = (CONFIGS | RELEASES)[name]
    width = next(config[key] for key in _TEXT_WIDTH if key in config)
    return [[torch.randn(1, length, width, generator=gen), {}]]


def build(name: str, dtype=torch.float32, **other_sizes: Any):
    """A tiny real MODEL with random weights, always the same ones."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    sizes = {**(CONFIGS | RELEASES)[name], **other_sizes}
    cls = {
        "lumina2": comfy.supported_models.ZImage,
        "flux2": comfy.supported_models.Flux2,
        "hidream_o1": comfy.supported_models.HiDreamO1,
        "qwen_image": comfy.supported_models.QwenImage,
    }[sizes["image_model"]]
    config = cls(sizes)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.diffusion_model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=gen) * 0.05)
            if weight.ndim == 1 and key.endswith("norm.weight"):
                weight.fill_(1.0)
    return comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def twin(patcher, name: str):
    """Another MODEL with the same weights in memory of its own."""
    other = build(name)
    other.model.diffusion_model.load_state_dict(patcher.model.diffusion_model.state_dict())
    return other


def quantised(kind: str):
    """The tiny FLUX.2 as a quantised checkpoint, loaded by the host."""
    import comfy.quant_ops
    import comfy.sd

    tensors = dict(build("flux2").model.diffusion_model.state_dict())
    for key in [key for key in tensors if "blocks" in key and tensors[key].ndim == 2]:
        storage = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
        weight = comfy.quant_ops.QuantizedTensor.from_float(tensors.pop(key), storage, scale="recalculate")
        tensors.update(weight.state_dict(key))
        note = json.dumps({"format": kind}).encode()
        tensors[key.replace(".weight", ".comfy_quant")] = torch.tensor(list(note), dtype=torch.uint8)
    patcher = comfy.sd.load_diffusion_model_state_dict(tensors)
    assert patcher is not None
    return patcher


def lora_for(patcher, seed: int = 0, rank: int = 3, base_model: str = "", size: float = 0.02) -> LoRA:
    """A random LoRA on every adapted Linear, q, k and v each on their own rows where the architecture has them."""
    gen = torch.Generator().manual_seed(seed)
    layers = {
        target: LowRank(
            torch.randn(rank, d_in, generator=gen) / d_in**0.5,
            torch.randn(d_out, rank, generator=gen) * size,
        )
        for target, d_in, d_out in _slots(patcher)
    }
    return LoRA(layers, base_model=base_model)


def _slots(patcher) -> list[tuple[Target, int, int]]:
    from i2l.i2l_core.base_models import ARCHITECTURES
    from i2l.i2l_core.host.patch import weights_of

    weights = weights_of(patcher)
    architecture = next(architecture for architecture in ARCHITECTURES if architecture.matches(weights))
    return [(slot.target, slot.d_in, slot.d_out) for slot in architecture.adapted_layers(weights)]


def close(actual: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= limit, f"relative error {error:.2e}"
