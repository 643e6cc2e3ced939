"""Qwen-Image, -Edit, -2512 and -Layered (ComfyUI: `comfy.ldm.qwen_image.model.QwenImageTransformer2DModel`).

The original checkpoint, diffusers' `QwenImageTransformer2DModel`, DiffSynth's `QwenImageDiT` and ComfyUI call
the layers alike. Qwen-Image has 846 of them; its releases differ in weights and in what is fed to them, not in
sizes.
"""

from __future__ import annotations

from .table import Architecture, BaseModel, LayerRule

_SQUARE = ("hidden", "hidden")

_LAYERS = {  # name: (d_out, d_in)
    "transformer_blocks.{}.attn.to_q": _SQUARE,
    "transformer_blocks.{}.attn.to_k": _SQUARE,
    "transformer_blocks.{}.attn.to_v": _SQUARE,
    "transformer_blocks.{}.attn.add_q_proj": _SQUARE,
    "transformer_blocks.{}.attn.add_k_proj": _SQUARE,
    "transformer_blocks.{}.attn.add_v_proj": _SQUARE,
    "transformer_blocks.{}.attn.to_out.0": _SQUARE,
    "transformer_blocks.{}.attn.to_add_out": _SQUARE,
    "transformer_blocks.{}.img_mod.1": ("6*hidden", "hidden"),
    "transformer_blocks.{}.img_mlp.net.0.proj": ("4*hidden", "hidden"),
    "transformer_blocks.{}.img_mlp.net.2": ("hidden", "4*hidden"),
    "transformer_blocks.{}.txt_mod.1": ("6*hidden", "hidden"),
    "transformer_blocks.{}.txt_mlp.net.0.proj": ("4*hidden", "hidden"),
    "transformer_blocks.{}.txt_mlp.net.2": ("hidden", "4*hidden"),
    "img_in": ("hidden", 64),
    "txt_in": ("hidden", "text"),
    "time_text_embed.timestep_embedder.linear_1": ("hidden", 256),
    "time_text_embed.timestep_embedder.linear_2": _SQUARE,
    "norm_out.linear": ("2*hidden", "hidden"),  # scale, shift on both sides
    "proj_out": (64, "hidden"),
}

QWEN_IMAGE = Architecture(
    title="Qwen-Image class",
    rules=tuple(LayerRule(name, name, size=size) for name, size in _LAYERS.items()),
    signature=("img_in", "txt_in", "transformer_blocks.0.img_mod.1", "transformer_blocks.0.attn.add_q_proj"),
    sizes={
        "hidden": ("img_in", 0),
        "text": ("txt_in", 1),
        "layers": "transformer_blocks.{}.img_mod.1",
    },
    sections={"transformer_blocks": "double blocks"},
    two_streams=("transformer_blocks",),
    network="QwenImageTransformer2DModel",
    text_only=("txt_", ".add_", "to_add_out"),
    references="ref_latents",
    doubled_batch=("time_text_embed.", "img_mod."),  # Edit-2511
)

MODELS = (
    BaseModel(
        id="qwen-image",
        title="Qwen-Image",
        architecture=QWEN_IMAGE,
        sizes={"hidden": 3072, "layers": 60},
        other_sizes={"text": 3584},
        manager_name="Qwen",
        modelspec_architecture="Qwen-Image",
        implementation="https://github.com/QwenLM/Qwen-Image",
    ),
)
