"""FLUX.2 dev and klein (ComfyUI: `comfy.ldm.flux.model.Flux` with `global_modulation`).

Names on the left are those of diffusers' `Flux2Transformer2DModel` and of DiffSynth's `Flux2DiT`, alike; those of the
original checkpoints are the host's. klein 4B has 109 of these layers. ComfyUI 0.30's own LoRA loader drops five
of them under diffusers' names: the modulation and time layers.
"""

from __future__ import annotations

from .table import Architecture, AttentionPart, BaseModel, LayerRule

_SQUARE = ("hidden", "hidden")
_MLP_IN, _MLP_OUT = ("6*hidden", "hidden"), ("hidden", "3*hidden")  # in: the gate and what it gates
_MODULATION = ("6*hidden", "hidden")  # shift, scale and gate, twice

# FLUX.1's names, which ComfyUI reads for FLUX.2 as well, and those of diffusers' fused projections
_ALIASES = (
    LayerRule(
        "transformer_blocks.{}.attn.to_qkv", "double_blocks.{}.img_attn.qkv", size=("3*hidden", "hidden")
    ),
    LayerRule(
        "transformer_blocks.{}.attn.to_added_qkv",
        "double_blocks.{}.txt_attn.qkv",
        size=("3*hidden", "hidden"),
    ),
    LayerRule("transformer_blocks.{}.ff.net.0.proj", "double_blocks.{}.img_mlp.0", size=_MLP_IN),
    LayerRule("transformer_blocks.{}.ff.net.2", "double_blocks.{}.img_mlp.2", size=_MLP_OUT),
    LayerRule("transformer_blocks.{}.ff_context.net.0.proj", "double_blocks.{}.txt_mlp.0", size=_MLP_IN),
    LayerRule("transformer_blocks.{}.ff_context.net.2", "double_blocks.{}.txt_mlp.2", size=_MLP_OUT),
    LayerRule(
        "single_blocks.{}.linear1_qkv", "single_blocks.{}.linear1", (0, 3), size=("3*hidden", "hidden")
    ),
    LayerRule("single_transformer_blocks.{}.attn.to_q", "single_blocks.{}.linear1", (0, 9), size=_SQUARE),
    LayerRule("single_transformer_blocks.{}.attn.to_k", "single_blocks.{}.linear1", (1, 9), size=_SQUARE),
    LayerRule("single_transformer_blocks.{}.attn.to_v", "single_blocks.{}.linear1", (2, 9), size=_SQUARE),
    LayerRule(
        "single_transformer_blocks.{}.proj_out", "single_blocks.{}.linear2", size=("hidden", "4*hidden")
    ),
    LayerRule("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", size=("hidden", 256)),
    LayerRule("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", size=_SQUARE),
    LayerRule("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", size=("hidden", 256)),
    LayerRule("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", size=_SQUARE),
)

FLUX2 = Architecture(
    title="FLUX.2 class",
    rules=(
        LayerRule("transformer_blocks.{}.attn.to_q", "double_blocks.{}.img_attn.qkv", (0, 3), size=_SQUARE),
        LayerRule("transformer_blocks.{}.attn.to_k", "double_blocks.{}.img_attn.qkv", (1, 3), size=_SQUARE),
        LayerRule("transformer_blocks.{}.attn.to_v", "double_blocks.{}.img_attn.qkv", (2, 3), size=_SQUARE),
        LayerRule(
            "transformer_blocks.{}.attn.add_q_proj", "double_blocks.{}.txt_attn.qkv", (0, 3), size=_SQUARE
        ),
        LayerRule(
            "transformer_blocks.{}.attn.add_k_proj", "double_blocks.{}.txt_attn.qkv", (1, 3), size=_SQUARE
        ),
        LayerRule(
            "transformer_blocks.{}.attn.add_v_proj", "double_blocks.{}.txt_attn.qkv", (2, 3), size=_SQUARE
        ),
        LayerRule("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj", size=_SQUARE),
        LayerRule("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj", size=_SQUARE),
        LayerRule("transformer_blocks.{}.ff.linear_in", "double_blocks.{}.img_mlp.0", size=_MLP_IN),
        LayerRule("transformer_blocks.{}.ff.linear_out", "double_blocks.{}.img_mlp.2", size=_MLP_OUT),
        LayerRule("transformer_blocks.{}.ff_context.linear_in", "double_blocks.{}.txt_mlp.0", size=_MLP_IN),
        LayerRule("transformer_blocks.{}.ff_context.linear_out", "double_blocks.{}.txt_mlp.2", size=_MLP_OUT),
        # q, k, v and the MLP input, in the same order on both sides
        LayerRule(
            "single_transformer_blocks.{}.attn.to_qkv_mlp_proj",
            "single_blocks.{}.linear1",
            size=("9*hidden", "hidden"),
            attention=AttentionPart("rows", 3, 9),
        ),
        LayerRule(
            "single_transformer_blocks.{}.attn.to_out",
            "single_blocks.{}.linear2",
            size=("hidden", "4*hidden"),
            attention=AttentionPart("columns", 1, 4),
        ),
        LayerRule("x_embedder", "img_in", size=("hidden", 128)),
        LayerRule("context_embedder", "txt_in", size=("hidden", "text")),
        LayerRule("proj_out", "final_layer.linear", size=(128, "hidden")),
        # scale, shift there; shift, scale here
        LayerRule(
            "norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True, size=("2*hidden", "hidden")
        ),
        LayerRule("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer", size=("hidden", 256)),
        LayerRule("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer", size=_SQUARE),
        LayerRule(
            "time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer", size=("hidden", 256)
        ),
        LayerRule("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer", size=_SQUARE),
        LayerRule(
            "double_stream_modulation_img.linear", "double_stream_modulation_img.lin", size=_MODULATION
        ),
        LayerRule(
            "double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin", size=_MODULATION
        ),
        LayerRule(
            "single_stream_modulation.linear", "single_stream_modulation.lin", size=("3*hidden", "hidden")
        ),
    ),
    aliases=_ALIASES,
    unread=("double_stream_modulation_", "single_stream_modulation", "time_guidance_embed"),
    signature=("img_in", "txt_in", "double_stream_modulation_img.lin", "single_blocks.0.linear1"),
    sizes={
        "hidden": ("img_in", 0),
        "text": ("txt_in", 1),
        "double": "double_blocks.{}.img_attn.qkv",
        "single": "single_blocks.{}.linear1",
        "guidance": "guidance_in.in_layer",  # dev only
    },
    sections={
        "double_blocks": "double blocks",
        "transformer_blocks": "double blocks",
        "single_blocks": "single blocks",
        "single_transformer_blocks": "single blocks",
    },
    two_streams=("double_blocks", "transformer_blocks"),
    network="Flux",
    text_only=("txt_",),
    text_first=("single_blocks.",),
    references="ref_latents",
    doubled_batch=("time_in.",),  # reference method index_timestep_zero
)

_CODE = "https://github.com/black-forest-labs/flux2"

MODELS = (
    BaseModel(
        id="flux2-klein-4b",
        title="FLUX.2 klein 4B",
        architecture=FLUX2,
        sizes={"hidden": 3072, "double": 5, "single": 20},
        other_sizes={"text": 7680},
        manager_name="Flux.2 Klein 4B-base",
        modelspec_architecture="Flux.2-klein-4b",
        implementation=_CODE,
    ),
    BaseModel(
        id="flux2-klein-9b",
        title="FLUX.2 klein 9B",
        architecture=FLUX2,
        sizes={"hidden": 4096, "double": 8, "single": 24},
        other_sizes={"text": 12288},
        manager_name="Flux.2 Klein 9B-base",
        modelspec_architecture="Flux.2-klein-9b",
        implementation=_CODE,
    ),
    BaseModel(
        id="flux2-dev",
        title="FLUX.2 dev",
        architecture=FLUX2,
        sizes={"hidden": 6144, "double": 8, "single": 48},
        other_sizes={"text": 15360, "guidance": 1},
        manager_name="Flux.2 D",
        modelspec_architecture="Flux.2-dev",
        implementation=_CODE,
    ),
)
