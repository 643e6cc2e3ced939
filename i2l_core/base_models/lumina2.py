"""Z-Image and what shares its network (ComfyUI: `comfy.ldm.lumina.model.NextDiT` with `z_image_modulation`).

Names on the left are those of the original checkpoint, of diffusers' `ZImageTransformer2DModel` and of DiffSynth's
`ZImageDiT`, alike. Z-Image has 276 of these layers, Omni-Base 291: it also has a vision encoder. The host fuses
to_q, to_k and to_v into `qkv`, in this order.
"""

from __future__ import annotations

from dataclasses import replace

from .table import Architecture, BaseModel, LayerRule

_BLOCKS = ("noise_refiner", "context_refiner", "siglip_refiner", "layers")
_MODULATED = ("noise_refiner", "layers")

_IN_BLOCK = (
    LayerRule("attention.to_q", "attention.qkv", (0, 3), size=("dim", "dim")),
    LayerRule("attention.to_k", "attention.qkv", (1, 3), size=("dim", "dim")),
    LayerRule("attention.to_v", "attention.qkv", (2, 3), size=("dim", "dim")),
    LayerRule("attention.to_out.0", "attention.out", size=("dim", "dim")),
    LayerRule("feed_forward.w1", "feed_forward.w1", size=("mlp", "dim")),
    LayerRule("feed_forward.w2", "feed_forward.w2", size=("dim", "mlp")),
    LayerRule("feed_forward.w3", "feed_forward.w3", size=("mlp", "dim")),
)
_MODULATION = LayerRule("adaLN_modulation.0", "adaLN_modulation.0", size=("4*dim", 256))

_OUTSIDE = (
    LayerRule("all_x_embedder.2-1", "x_embedder", size=("dim", 64)),
    LayerRule("t_embedder.mlp.0", "t_embedder.mlp.0", size=("time", 256)),
    LayerRule("t_embedder.mlp.2", "t_embedder.mlp.2", size=(256, "time")),
    LayerRule("cap_embedder.1", "cap_embedder.1", size=("dim", "text")),
    LayerRule("siglip_embedder.1", "siglip_embedder.1", size=("dim", "siglip")),  # Omni only
    LayerRule("all_final_layer.2-1.linear", "final_layer.linear", size=(64, "dim")),
    LayerRule("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1", size=("dim", 256)),
)


def _inside(blocks: str, rule: LayerRule) -> LayerRule:
    return replace(rule, name=f"{blocks}.{{}}.{rule.name}", weight=f"{blocks}.{{}}.{rule.weight}")


LUMINA2 = Architecture(
    title="Z-Image class",
    rules=(
        *(_inside(blocks, rule) for blocks in _BLOCKS for rule in _IN_BLOCK),
        *(_inside(blocks, _MODULATION) for blocks in _MODULATED),
        *_OUTSIDE,
    ),
    unread=("siglip_",),
    # diffusers' fused projection
    aliases=tuple(
        _inside(blocks, LayerRule("attention.to_qkv", "attention.qkv", size=("3*dim", "dim")))
        for blocks in _BLOCKS
    ),
    # Lumina 2 itself has adaLN_modulation.1
    signature=("x_embedder", "cap_embedder.1", "layers.0.attention.qkv", "layers.0.adaLN_modulation.0"),
    sizes={
        "dim": ("x_embedder", 0),
        "mlp": ("layers.0.feed_forward.w1", 0),
        "time": ("t_embedder.mlp.0", 0),
        "text": ("cap_embedder.1", 1),
        "siglip": ("siglip_embedder.1", 1),
        "layers": "layers.{}.attention.qkv",
        "refiners": "noise_refiner.{}.attention.qkv",
        "context": "context_refiner.{}.attention.qkv",
        "vision_blocks": "siglip_refiner.{}.attention.qkv",
    },
    sections={
        "context_refiner": "text refiner",
        "noise_refiner": "image refiner",
        "layers": "main blocks",
    },
    network="NextDiT",
    text_only=("context_refiner.", "cap_embedder.", "siglip_"),  # Omni puts references among the text
    doubled_batch=("t_embedder.", "adaLN_modulation."),  # Omni
)

MODELS = (
    BaseModel(
        id="z-image",
        title="Z-Image",
        architecture=LUMINA2,
        sizes={"dim": 3840, "layers": 30},
        other_sizes={
            "mlp": 10240,
            "time": 1024,
            "text": 2560,
            "refiners": 2,
            "context": 2,
            "vision_blocks": 2,  # these two: Omni-Base
            "siglip": 1152,
        },
        manager_name="ZImageBase",
        modelspec_architecture="Z-Image",
        implementation="https://github.com/Tongyi-MAI/Z-Image",
    ),
)
