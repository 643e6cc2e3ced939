"""Templates that are a whole network: ControlNet, Edit, Upscaler, Inpaint.

A FLUX.2 of its own looks at pictures and at a prompt, at noise level 0; the keys (after normalisation and rotation) and
values of all its blocks are the cache. The names of its tensors are those of Flux2DiTVariantModel (the model.py of the
published Upscaler); here they become the host's. `norm_out` and `proj_out` come along unused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..checks import listed
from ..errors import I2LError
from ..files.safetensors import FileHeader

REFERENCE_INDEX = 10.0  # first rotary coordinate of picture i is 10 (i + 1); text has 0

# the file's name -> the host's
_NAMES = (
    (r"img_embedder", "img_in"),
    (r"txt_embedder", "txt_in"),
    (r"time_guidance_embed\.timestep_embedder\.0", "time_in.in_layer"),
    (r"time_guidance_embed\.timestep_embedder\.2", "time_in.out_layer"),
    (r"(double_stream_modulation_(?:img|txt)|single_stream_modulation)\.linear", r"\1.lin"),
    (r"transformer_blocks\.(\d+)\.(img|txt)_to_qkv", r"double_blocks.\1.\2_attn.qkv"),
    (r"transformer_blocks\.(\d+)\.(img|txt)_norm_q", r"double_blocks.\1.\2_attn.norm.query_norm"),
    (r"transformer_blocks\.(\d+)\.(img|txt)_norm_k", r"double_blocks.\1.\2_attn.norm.key_norm"),
    (r"transformer_blocks\.(\d+)\.(img|txt)_to_out", r"double_blocks.\1.\2_attn.proj"),
    (r"transformer_blocks\.(\d+)\.(img|txt)_ff\.linear_in", r"double_blocks.\1.\2_mlp.0"),
    (r"transformer_blocks\.(\d+)\.(img|txt)_ff\.linear_out", r"double_blocks.\1.\2_mlp.2"),
    (r"single_transformer_blocks\.(\d+)\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
    (r"single_transformer_blocks\.(\d+)\.norm_q", r"single_blocks.\1.norm.query_norm"),
    (r"single_transformer_blocks\.(\d+)\.norm_k", r"single_blocks.\1.norm.key_norm"),
    (r"single_transformer_blocks\.(\d+)\.to_out", r"single_blocks.\1.linear2"),
)
_PATTERNS = tuple((re.compile(pattern), name) for pattern, name in _NAMES)
_UNUSED = ("norm_out.linear.weight", "proj_out.weight")
_SIGNATURE = ("img_embedder.weight", "txt_embedder.weight", "transformer_blocks.0.img_to_qkv.weight")


def flux2_arguments(head_dim: int) -> dict[str, Any]:
    """What makes the host's Flux class a FLUX.2, whatever its size."""
    return {
        "axes_dim": [head_dim // 4] * 4,
        "txt_ids_dims": [3],
        "vec_in_dim": None,
        "global_modulation": True,
        "mlp_silu_act": True,
        "qkv_bias": False,
        "ops_bias": False,
        "guidance_embed": False,
        "default_ref_method": "index",
        "ref_index_scale": REFERENCE_INDEX,
    }


@dataclass(frozen=True)
class DitTemplate:
    """Sizes of the network, read from shapes. `patch`: numbers in a patch of a latent; `text`: width of a prompt."""

    hidden: int
    head_dim: int
    mlp: int
    double: int
    single: int
    patch: int
    text: int

    def host_config(self, channels: int) -> dict[str, Any]:
        """What the host's Flux class is built with, for latents of `channels`.

        Raises I2LError when its patches are not made of so many channels.
        """
        side = round((self.patch / channels) ** 0.5)
        if side * side * channels != self.patch:
            raise I2LError(
                f"it looks at patches of {self.patch} numbers, the VAE gives {channels} channels: connect the VAE of "
                "FLUX.2"
            )
        return {
            "in_channels": channels,
            "out_channels": channels,
            "patch_size": side,
            "hidden_size": self.hidden,
            "num_heads": self.hidden // self.head_dim,
            "context_in_dim": self.text,
            "mlp_ratio": self.mlp / self.hidden,
            "depth": self.double,
            "depth_single_blocks": self.single,
            "theta": 2000,
            **flux2_arguments(self.head_dim),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor of the file."""
        wide, head, mlp = self.hidden, self.head_dim, self.mlp
        found: dict[str, tuple[int, ...]] = {
            "img_embedder": (wide, self.patch),
            "txt_embedder": (wide, self.text),
            "time_guidance_embed.timestep_embedder.0": (wide, 256),
            "time_guidance_embed.timestep_embedder.2": (wide, wide),
            "double_stream_modulation_img.linear": (6 * wide, wide),
            "double_stream_modulation_txt.linear": (6 * wide, wide),
            "single_stream_modulation.linear": (3 * wide, wide),
            "norm_out.linear": (2 * wide, wide),
            "proj_out": (self.patch, wide),
        }
        for i in range(self.double):
            for stream in ("img", "txt"):
                place = f"transformer_blocks.{i}.{stream}_"
                found |= {
                    f"{place}to_qkv": (3 * wide, wide),
                    f"{place}norm_q": (head,),
                    f"{place}norm_k": (head,),
                    f"{place}to_out": (wide, wide),
                    f"{place}ff.linear_in": (2 * mlp, wide),
                    f"{place}ff.linear_out": (wide, mlp),
                }
        for i in range(self.single):
            place = f"single_transformer_blocks.{i}."
            found |= {
                f"{place}to_qkv_mlp_proj": (3 * wide + 2 * mlp, wide),
                f"{place}norm_q": (head,),
                f"{place}norm_k": (head,),
                f"{place}to_out": (wide, wide + mlp),
            }
        return {f"{name}.weight": shape for name, shape in found.items()}


def recognise_dit(header: FileHeader) -> DitTemplate | None:
    """None when it is no such template. Raises I2LError when it is one whose tensors do not fit each other."""
    shapes = header.shapes
    if not all(name in shapes for name in _SIGNATURE):
        return None
    try:
        hidden, patch = shapes["img_embedder.weight"]
        _, text = shapes["txt_embedder.weight"]
        (head_dim,) = shapes.get("transformer_blocks.0.img_norm_q.weight", ())
        _, mlp = shapes.get("transformer_blocks.0.img_ff.linear_out.weight", ())
    except ValueError as error:
        raise I2LError(
            "it is a template of a whole FLUX.2 whose tensors are misshapen; download it again"
        ) from error
    found = DitTemplate(
        hidden, head_dim, mlp, _count("transformer_blocks", shapes), _count("single_transformer_blocks", shapes),
        patch, text,
    )  # fmt: skip
    expected = found.shapes()
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{name} is not expected" for name in shapes if name not in expected]
    problems += [
        f"{name} has {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems or not head_dim or hidden % head_dim or head_dim % 8:
        problems = problems or [f"heads of {head_dim} do not make {hidden}"]
        raise I2LError(f"it is a template of a whole FLUX.2, but {listed(problems)}; download it again")
    return found


def host_name(name: str) -> str | None:
    """The host's name of a tensor; None for what is not used."""
    if name in _UNUSED:
        return None
    bare = name.removesuffix(".weight")
    for pattern, host in _PATTERNS:
        if found := pattern.fullmatch(bare):
            return f"{found.expand(host)}.weight"
    return None


def _count(blocks: str, shapes: Any) -> int:
    index = 0
    while any(name.startswith(f"{blocks}.{index}.") for name in shapes):
        index += 1
    return index
