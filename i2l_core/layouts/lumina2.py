"""Z-Image and what shares its network (ComfyUI: `comfy.ldm.lumina.model.NextDiT` with `z_image_modulation`).

Names on the left are those of diffusers' `ZImageTransformer2DModel` and of DiffSynth's `ZImageDiT`, alike.
Z-Image has 276 of these layers, Omni-Base 291: it also has eyes. The host fuses to_q, to_k and to_v into `qkv`,
in this order.
"""

from __future__ import annotations

from .table import Layout, Line

_BLOCKS = ("noise_refiner", "context_refiner", "siglip_refiner", "layers")
_MODULATED = ("noise_refiner", "layers")

_IN_BLOCK = (
    Line("attention.to_q", "attention.qkv", (0, 3)),
    Line("attention.to_k", "attention.qkv", (1, 3)),
    Line("attention.to_v", "attention.qkv", (2, 3)),
    Line("attention.to_out.0", "attention.out"),
    Line("feed_forward.w1", "feed_forward.w1"),
    Line("feed_forward.w2", "feed_forward.w2"),
    Line("feed_forward.w3", "feed_forward.w3"),
)

_OUTSIDE = (
    Line("all_x_embedder.2-1", "x_embedder"),
    Line("t_embedder.mlp.0", "t_embedder.mlp.0"),
    Line("t_embedder.mlp.2", "t_embedder.mlp.2"),
    Line("cap_embedder.1", "cap_embedder.1"),
    Line("siglip_embedder.1", "siglip_embedder.1"),  # Omni only
    Line("all_final_layer.2-1.linear", "final_layer.linear"),
    Line("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
)

LUMINA2 = Layout(
    title="Z-Image class",
    lines=(
        *(
            Line(f"{blocks}.{{}}.{line.name}", f"{blocks}.{{}}.{line.weight}", line.part)
            for blocks in _BLOCKS
            for line in _IN_BLOCK
        ),
        *(Line(name, name) for name in (f"{blocks}.{{}}.adaLN_modulation.0" for blocks in _MODULATED)),
        *_OUTSIDE,
    ),
    # Lumina 2 itself has adaLN_modulation.1
    signature=("x_embedder", "cap_embedder.1", "layers.0.attention.qkv", "layers.0.adaLN_modulation.0"),
    sizes={
        "dim": ("x_embedder", 0),
        "layers": "layers.{}.attention.qkv",
        "refiners": "noise_refiner.{}.attention.qkv",
        "text": ("cap_embedder.1", 1),
    },
)
