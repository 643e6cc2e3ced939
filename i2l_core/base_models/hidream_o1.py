"""HiDream-O1 (ComfyUI: `comfy.ldm.hidream_o1.model.HiDreamO1Transformer`), Qwen3-VL-8B that draws.

Names with `model.` in front are those of the original checkpoint and of DiffSynth's `HiDreamO1ImageDiT`, alike.
HiDream-O1 has 374 of these layers, ComfyUI 367: it drops the text head and the mergers, whose outputs are not
used. ComfyUI 0.30's own LoRA loader finds none of them under the original names.
"""

from __future__ import annotations

from .table import Architecture, BaseModel, LayerRule

_LAYERS = {  # the host's name: (d_out, d_in)
    "language_model.layers.{}.self_attn.q_proj": ("query", "hidden"),
    "language_model.layers.{}.self_attn.k_proj": ("key", "hidden"),
    "language_model.layers.{}.self_attn.v_proj": ("key", "hidden"),
    "language_model.layers.{}.self_attn.o_proj": ("hidden", "query"),
    "language_model.layers.{}.mlp.gate_proj": ("mlp", "hidden"),
    "language_model.layers.{}.mlp.up_proj": ("mlp", "hidden"),
    "language_model.layers.{}.mlp.down_proj": ("hidden", "mlp"),
    "visual.blocks.{}.attn.qkv": ("3*vision", "vision"),  # one layer on both sides
    "visual.blocks.{}.attn.proj": ("vision", "vision"),
    "visual.blocks.{}.mlp.linear_fc1": ("vision_mlp", "vision"),
    "visual.blocks.{}.mlp.linear_fc2": ("vision", "vision_mlp"),
    "visual.merger.linear_fc1": ("4*vision", "4*vision"),
    "visual.merger.linear_fc2": ("hidden", "4*vision"),
    "t_embedder1.mlp.0": ("hidden", 256),
    "t_embedder1.mlp.2": ("hidden", "hidden"),
    "x_embedder.proj1": ("bottleneck", 3072),
    "x_embedder.proj2": ("hidden", "bottleneck"),
    "final_layer2.linear": (3072, "hidden"),
}

HIDREAM_O1 = Architecture(
    title="HiDream-O1 class",
    rules=tuple(LayerRule(f"model.{name}", name, size=size) for name, size in _LAYERS.items()),
    signature=(
        "x_embedder.proj1",
        "t_embedder1.mlp.0",
        "final_layer2.linear",
        "language_model.layers.0.self_attn.q_proj",
    ),
    sizes={
        "hidden": ("x_embedder.proj2", 0),
        "query": ("language_model.layers.0.self_attn.q_proj", 0),
        "key": ("language_model.layers.0.self_attn.k_proj", 0),
        "mlp": ("language_model.layers.0.mlp.up_proj", 0),
        "vision": ("visual.blocks.0.attn.proj", 0),
        "vision_mlp": ("visual.blocks.0.mlp.linear_fc1", 0),
        "bottleneck": ("x_embedder.proj1", 0),
        "layers": "language_model.layers.{}.self_attn.q_proj",
        "vision_blocks": "visual.blocks.{}.attn.qkv",
    },
    unread=("model.",),
    absent=(
        "model.visual.deepstack_merger_list.{}.linear_fc1",
        "model.visual.deepstack_merger_list.{}.linear_fc2",
        "lm_head",
    ),
    sections={"visual.blocks": "vision", "language_model.layers": "main blocks"},
    network="HiDreamO1Transformer",
    text_only=("visual.",),
    references="ref_patches",
    shared_rows=("visual.",),
    # keys and values of the prompt are found again by prompt and size alone, and nothing in ComfyUI 0.30 clears them
    prefix_cache={"_kv_cache_entries": [], "_visual_cache": None},
    tokenizers={"hidream_o1": "HiDreamO1"},
)

MODELS = (
    BaseModel(
        id="hidream-o1",
        title="HiDream-O1",
        architecture=HIDREAM_O1,
        sizes={"hidden": 4096, "layers": 36, "vision_blocks": 27},
        other_sizes={
            "query": 4096,
            "key": 1024,
            "mlp": 12288,
            "vision": 1152,
            "vision_mlp": 4304,
            "bottleneck": 1024,
        },
        manager_name="HiDream-O1",
        modelspec_architecture="HiDream-O1",
        implementation="https://github.com/HiDream-ai/HiDream-O1-Image",
    ),
)
