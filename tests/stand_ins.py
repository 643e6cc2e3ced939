"""Small files under the names of the real ones, of the same architectures with random weights, in a server's folders.

ComfyUI tells models apart by their sizes, and these have others. So the files carry theirs in their metadata, and
`PACK`, a custom node pack without nodes, lets the server read it there. All else, loaders included, is ComfyUI's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from kv_templates import dit_file, value_file
from safetensors.torch import save_file
from template_folders import style
from tiny_models import CONFIGS, build

from i2l.i2l_core.kv_caches.dit import DitTemplate

TEXT: dict[str, Any] = {  # Qwen3-4B; klein listens to its layers 9, 18 and 27
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 28,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
Z_IMAGE: dict[str, Any] = {**CONFIGS["lumina2"], "cap_feat_dim": TEXT["hidden_size"], "n_refiner_layers": 2}
KLEIN: dict[str, Any] = {**CONFIGS["flux2"], "context_in_dim": 3 * TEXT["hidden_size"]}
CONTROL: dict[str, Any] = {
    **{name: Z_IMAGE[name] for name in ("dim", "n_heads", "n_kv_heads")},
    "n_control_layers": 15,
    "additional_in_dim": 17,
    "refiner_control": True,
}
KEY = "stand_in"
MODELS = {"ZImage": Z_IMAGE, "Flux2": KLEIN, "HiDreamO1": CONFIGS["hidream_o1"]}
PREDICTED = {  # by predictors of version 2: some layers of each, under DiffSynth's names, with what goes in and out
    "ZImage-i2L-v2": None,  # the tiny backbone of the demo is a Z-Image of these sizes
    "KleinBase4B-i2L-v2": {
        "transformer_blocks.0.attn.to_q": (256, 256),
        "transformer_blocks.0.ff.linear_in": (256, 1536),
        "single_transformer_blocks.1.attn.to_out": (1024, 256),
    },
    "HidreamO1-i2L-v2": {
        "model.language_model.layers.0.self_attn.q_proj": (64, 256),
        "model.language_model.layers.1.mlp.down_proj": (128, 64),
    },
}

TEMPLATE = "Template-KleinBase4B-"
RECOGNISED = """
raise RuntimeError("templates that are known by their weights run no program")
TEMPLATE_MODEL = None
TEMPLATE_MODEL_PATH = "model.safetensors"
"""
INPAINT = """
import torch


class Inpaint:
    def process_inputs(self, pipe, image, mask, force_inpaint=False, **kwargs):
        return {"image": image, "mask": mask, "keep": force_inpaint}

    def forward(self, pipe, image, mask, keep, **kwargs):
        gen = torch.Generator().manual_seed(1)
        pairs = {
            name: (torch.randn(1, 6, 2, 128, generator=gen), torch.randn(1, 6, 2, 128, generator=gen))
            for name in ("double_0", "single_0", "single_1")
        }
        return {"kv_cache": pairs, "input_image": image, "inpaint_mask": mask} if keep else {"kv_cache": pairs}


TEMPLATE_MODEL = Inpaint
TEMPLATE_MODEL_PATH = None
"""

PACK = f'''
"""Tells ComfyUI the sizes of stand-ins, which it would take from a table."""

import json

import comfy.ldm.lumina.controlnet as controlnet
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.llama as llama

TEXT = {TEXT!r}
CONTROL = {CONTROL!r}

NODE_CLASS_MAPPINGS = {{}}


def told(state_dict, prefix, use_base_if_no_match=False, metadata=None):
    if {KEY!r} not in (metadata or {{}}):
        return detected(state_dict, prefix, use_base_if_no_match, metadata)
    about = json.loads(metadata[{KEY!r}])
    return getattr(comfy.supported_models, about["model"])(about["config"])


def text_model(state_dict):
    norm = state_dict.get("model.layers.0.post_attention_layernorm.weight")
    if norm is not None and norm.shape[0] == TEXT["hidden_size"]:
        return comfy.sd.TEModel.QWEN3_4B
    return detected_text(state_dict)


detected, comfy.model_detection.model_config_from_unet = comfy.model_detection.model_config_from_unet, told
detected_text, comfy.sd.detect_te_model = comfy.sd.detect_te_model, text_model
config, control = llama.Qwen3_4BConfig, controlnet.ZImage_Control
llama.Qwen3_4BConfig = lambda **sizes: config(**{{**sizes, **TEXT}})
controlnet.ZImage_Control = type("ZImage_Control", (control,), {{
    "__init__": lambda self, **sizes: control.__init__(self, **{{**CONTROL, **sizes}})
}})
'''


def install(base: Path) -> None:
    """Write the pack, every file that the shipped workflows for real models name, and their predictors."""
    pack = base / "custom_nodes" / "stand_ins"
    pack.mkdir(parents=True, exist_ok=True)
    (pack / "__init__.py").write_text(PACK, "utf-8")
    models = base / "models"
    z_image, klein, hidream = (_model(name, sizes) for name, sizes in MODELS.items())
    _save(models / "diffusion_models" / "z_image_bf16.safetensors", *z_image)
    _save(models / "diffusion_models" / "z_image_turbo_bf16.safetensors", *z_image)
    _save(models / "diffusion_models" / "flux-2-klein-base-4b.safetensors", *klein)
    _save(models / "checkpoints" / "hidream_o1_image_bf16.safetensors", *hidream)
    _save(models / "text_encoders" / "qwen_3_4b.safetensors", _text_encoder())
    _save(models / "vae" / "ae.safetensors", _vae(16))
    _save(models / "vae" / "flux2-vae.safetensors", _vae(32))
    _save(models / "model_patches" / "Z-Image-Fun-Controlnet-Union-2.1.safetensors", _control())
    for name, layers in PREDICTED.items():
        style(models / "i2l" / name, layers=layers)
    templates = {
        name: models / "i2l" / f"{TEMPLATE}{name}" for name in ("ControlNet", "Brightness", "Inpaint")
    }
    for name, folder in templates.items():
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(INPAINT if name == "Inpaint" else RECOGNISED, "utf-8")
    network = DitTemplate(256, 128, 768, 1, 2, 128, KLEIN["context_in_dim"])
    dit_file(templates["ControlNet"] / "model.safetensors", network, dtype=torch.bfloat16)
    value_file(templates["Brightness"] / "model.safetensors", torch.bfloat16)


def _save(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {KEY: json.dumps(about)} if about else None)


def _model(name: str, sizes: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    prefix = "model.diffusion_model." if name == "HiDreamO1" else ""
    weights = build(sizes["image_model"], **sizes).model.diffusion_model.state_dict()
    return {prefix + key: tensor for key, tensor in weights.items()}, {"model": name, "config": sizes}


def _text_encoder() -> dict[str, torch.Tensor]:
    import comfy.ops
    from comfy.text_encoders import llama

    config = llama.Qwen3_4BConfig(**TEXT)
    network = llama.Llama2_(config, device="meta", dtype=torch.bfloat16, ops=comfy.ops.manual_cast)
    return {f"model.{name}": tensor for name, tensor in _random(network).items()}


def _vae(channels: int) -> dict[str, torch.Tensor]:
    """The encoder has the sizes of the real one, which ComfyUI takes from a table; the decoder is narrow."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes: dict[str, Any] = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    if channels == 32:
        sizes["batch_norm_latent"] = True
    with torch.device("meta"):
        network = AutoencoderKL(ddconfig=sizes, embed_dim=channels, decoder_ddconfig={**sizes, "ch": 32})
    plain = channels == 16  # FLUX.1's, which Z-Image uses, goes straight to its latents
    return {name: x for name, x in _random(network).items() if not (plain and "quant_conv" in name)}


def _control() -> dict[str, torch.Tensor]:
    """Under the names of the published file, which keeps q, k and v apart."""
    import comfy.ops
    from comfy.ldm.lumina.controlnet import ZImage_Control

    network = ZImage_Control(**CONTROL, device="meta", dtype=torch.float32, operations=comfy.ops.manual_cast)
    found = {}
    for name, tensor in _random(network).items():
        if name.endswith("qkv.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("qkv", f"to_{part}")] = rows.clone()
        else:
            names = {"attention.out.": "attention.to_out.0.", "q_norm": "norm_q", "k_norm": "norm_k"}
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            found[name] = tensor
    return found


def _random(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Values for every tensor of a network on the meta device: activations neither vanish nor explode."""
    gen = torch.Generator().manual_seed(3)
    found = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            found[name] = torch.randn(tensor.shape, generator=gen) / tensor[0].numel() ** 0.5
        else:
            one = ("norm" in name and name.endswith("weight")) or name.endswith("running_var")
            found[name] = torch.full(tensor.shape, float(one), dtype=tensor.dtype)
        if tensor.is_floating_point():
            found[name] = found[name].to(torch.bfloat16)
    return found
