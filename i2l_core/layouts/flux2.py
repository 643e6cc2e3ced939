"""FLUX.2 dev and klein (ComfyUI: `comfy.ldm.flux.model.Flux` with `global_modulation`).

Names on the left are those of diffusers' `Flux2Transformer2DModel` and of DiffSynth's `Flux2DiT`, alike.
klein 4B has 109 of these layers. ComfyUI 0.30's own LoRA loader drops five of them under these names: the
modulation and time layers.
"""

from __future__ import annotations

from .table import Layout, Line

FLUX2 = Layout(
    title="FLUX.2 class",
    lines=(
        Line("transformer_blocks.{}.attn.to_q", "double_blocks.{}.img_attn.qkv", (0, 3)),
        Line("transformer_blocks.{}.attn.to_k", "double_blocks.{}.img_attn.qkv", (1, 3)),
        Line("transformer_blocks.{}.attn.to_v", "double_blocks.{}.img_attn.qkv", (2, 3)),
        Line("transformer_blocks.{}.attn.add_q_proj", "double_blocks.{}.txt_attn.qkv", (0, 3)),
        Line("transformer_blocks.{}.attn.add_k_proj", "double_blocks.{}.txt_attn.qkv", (1, 3)),
        Line("transformer_blocks.{}.attn.add_v_proj", "double_blocks.{}.txt_attn.qkv", (2, 3)),
        Line("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj"),
        Line("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj"),
        Line("transformer_blocks.{}.ff.linear_in", "double_blocks.{}.img_mlp.0"),
        Line("transformer_blocks.{}.ff.linear_out", "double_blocks.{}.img_mlp.2"),
        Line("transformer_blocks.{}.ff_context.linear_in", "double_blocks.{}.txt_mlp.0"),
        Line("transformer_blocks.{}.ff_context.linear_out", "double_blocks.{}.txt_mlp.2"),
        # q, k, v and the MLP input, in the same order on both sides
        Line("single_transformer_blocks.{}.attn.to_qkv_mlp_proj", "single_blocks.{}.linear1"),
        Line("single_transformer_blocks.{}.attn.to_out", "single_blocks.{}.linear2"),
        Line("x_embedder", "img_in"),
        Line("context_embedder", "txt_in"),
        Line("proj_out", "final_layer.linear"),
        # scale, shift there; shift, scale here
        Line("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
        Line("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        Line("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
        Line("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),  # dev only
        Line("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
        Line("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
        Line("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
        Line("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ),
    signature=("img_in", "txt_in", "double_stream_modulation_img.lin", "single_blocks.0.linear1"),
    sizes={
        "hidden": ("img_in", 0),
        "double": "double_blocks.{}.img_attn.qkv",
        "single": "single_blocks.{}.linear1",
        "text": ("txt_in", 1),
    },
)
