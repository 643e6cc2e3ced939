"""Qwen-Image, -Edit, -2512 and -Layered (ComfyUI: `comfy.ldm.qwen_image.model.QwenImageTransformer2DModel`).

The original checkpoint, diffusers' `QwenImageTransformer2DModel`, DiffSynth's `QwenImageDiT` and ComfyUI call
the layers alike. Qwen-Image has 846 of them; its releases differ in weights and in what is fed to them, not in
sizes.
"""

from __future__ import annotations

from .table import Layout, Line

_NAMES = (
    "transformer_blocks.{}.attn.to_q",
    "transformer_blocks.{}.attn.to_k",
    "transformer_blocks.{}.attn.to_v",
    "transformer_blocks.{}.attn.add_q_proj",
    "transformer_blocks.{}.attn.add_k_proj",
    "transformer_blocks.{}.attn.add_v_proj",
    "transformer_blocks.{}.attn.to_out.0",
    "transformer_blocks.{}.attn.to_add_out",
    "transformer_blocks.{}.img_mod.1",
    "transformer_blocks.{}.img_mlp.net.0.proj",
    "transformer_blocks.{}.img_mlp.net.2",
    "transformer_blocks.{}.txt_mod.1",
    "transformer_blocks.{}.txt_mlp.net.0.proj",
    "transformer_blocks.{}.txt_mlp.net.2",
    "img_in",
    "txt_in",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
    "norm_out.linear",  # scale, shift on both sides
    "proj_out",
)

QWEN_IMAGE = Layout(
    title="Qwen-Image class",
    lines=tuple(Line(name, name) for name in _NAMES),
    signature=("img_in", "txt_in", "transformer_blocks.0.img_mod.1", "transformer_blocks.0.attn.add_q_proj"),
    sizes={
        "hidden": ("img_in", 0),
        "layers": "transformer_blocks.{}.img_mod.1",
        "text": ("txt_in", 1),
    },
)
