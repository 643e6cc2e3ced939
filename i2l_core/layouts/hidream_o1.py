"""HiDream-O1 (ComfyUI: `comfy.ldm.hidream_o1.model.HiDreamO1Transformer`), Qwen3-VL-8B that draws.

Names with `model.` in front are those of the original checkpoint and of DiffSynth's `HiDreamO1ImageDiT`, alike.
HiDream-O1 has 374 of these layers, ComfyUI 367: it drops the text head and the mergers, whose outputs are not
used. ComfyUI 0.30's own LoRA loader finds none of them under the original names.
"""

from __future__ import annotations

from .table import Layout, Line

_NAMES = (
    "language_model.layers.{}.self_attn.q_proj",
    "language_model.layers.{}.self_attn.k_proj",
    "language_model.layers.{}.self_attn.v_proj",
    "language_model.layers.{}.self_attn.o_proj",
    "language_model.layers.{}.mlp.gate_proj",
    "language_model.layers.{}.mlp.up_proj",
    "language_model.layers.{}.mlp.down_proj",
    "visual.blocks.{}.attn.qkv",  # one layer on both sides
    "visual.blocks.{}.attn.proj",
    "visual.blocks.{}.mlp.linear_fc1",
    "visual.blocks.{}.mlp.linear_fc2",
    "visual.merger.linear_fc1",
    "visual.merger.linear_fc2",
    "t_embedder1.mlp.0",
    "t_embedder1.mlp.2",
    "x_embedder.proj1",
    "x_embedder.proj2",
    "final_layer2.linear",
)

HIDREAM_O1 = Layout(
    title="HiDream-O1 class",
    lines=tuple(Line(f"model.{name}", name) for name in _NAMES),
    signature=(
        "x_embedder.proj1",
        "t_embedder1.mlp.0",
        "final_layer2.linear",
        "language_model.layers.0.self_attn.q_proj",
    ),
    sizes={
        "hidden": ("x_embedder.proj2", 0),
        "layers": "language_model.layers.{}.self_attn.q_proj",
        "eyes": "visual.blocks.{}.attn.qkv",
    },
    absent=(
        "model.visual.deepstack_merger_list.{}.linear_fc1",
        "model.visual.deepstack_merger_list.{}.linear_fc2",
        "lm_head",
    ),
)
