"""The position of a weight in a diffusion transformer, from its name: block, stream and kind of layer.

Used for plots and block weights, not for addressing. Names of unknown models are read by the same rules where possible.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from . import ARCHITECTURES
from .table import AttentionPart

ATTENTION, MLP, BOTH, MODULATION, OTHER = "attention", "MLP", "attention + MLP", "modulation", "other"
KINDS = (ATTENTION, MLP, BOTH, MODULATION, OTHER)
IMAGE, TEXT = "image", "text"
Q, K, V, OUT = "q", "k", "v", "attention out"


@dataclass(frozen=True)
class LayerPosition:
    """`blocks`: name of the list of blocks, such as "double_blocks", and `index` in it; unset outside of blocks.

    `stream`: IMAGE or TEXT if the layer processes only one of the two, else empty.
    """

    blocks: str
    index: int
    stream: str
    kind: str

    @property
    def section(self) -> str:
        """The title of the list of blocks, one per stream."""
        if not self.blocks:
            return "input/output, time layers"
        title = _titles().get(self.blocks, self.blocks.replace("_", " ").replace(".", " "))
        return f"{title}, {self.stream}" if self.stream and self.blocks in _two_streams() else title

    @property
    def order(self) -> tuple[int, str, int]:
        """Sorts places as a picture passes through them; unknown blocks come after the known, what is outside last."""
        known = list(_titles())
        rank = known.index(self.blocks) if self.blocks in known else len(known) + (not self.blocks)
        return rank, self.section, self.index


@functools.cache
def _titles() -> dict[str, str]:
    """List of blocks -> its title; those of one architecture in the order in which a picture passes through them."""
    return {blocks: title for one in ARCHITECTURES for blocks, title in one.sections.items()}


@functools.cache
def _two_streams() -> frozenset[str]:
    return frozenset(blocks for one in ARCHITECTURES for blocks in one.two_streams)


@functools.cache
def _attention_parts() -> tuple[tuple[re.Pattern[str], AttentionPart], ...]:
    """Pattern of a layer's name, in the host or in diffusers, -> which part of it is attention's."""
    return tuple(
        (re.compile(re.escape(name).replace(r"\{\}", r"\d+")), rule.attention)
        for one in ARCHITECTURES
        for rule in one.rules
        if rule.attention is not None
        for name in (rule.weight, rule.name)
    )


def attention_part_of(weight: str) -> AttentionPart | None:
    """The part of a layer that belongs to attention, where attention and MLP share the layer; else None."""
    return next((part for pattern, part in _attention_parts() if pattern.search(weight)), None)


_FUSED = re.compile(r"(^|[._])qkv(_proj)?$")
_SINGLE = re.compile(r"(?:^|[._])([qkv])(?:_proj)?$")
_OUT = re.compile(r"(^|[._])(to_out(\.0)?|to_add_out|add_out_proj|o|o_proj|out_proj|out|proj)$")


def projections_of(weight: str) -> tuple[str, ...]:
    """The projections Q, K, V and OUT in a layer of attention; empty if its name does not tell.

    Several lie one after the other in its rows (d_out), each with d_in rows. In a layer that joins attention and MLP
    they are the attention part of `attention_part_of`.
    """
    part = attention_part_of(weight)
    if part is not None:
        return (Q, K, V) if part.along == "rows" else (OUT,)
    if _kind(weight) != ATTENTION:
        return ()
    if _FUSED.search(weight):
        return Q, K, V
    single = _SINGLE.search(weight)
    return (single.group(1),) if single else (OUT,) if _OUT.search(weight) else ()


# In order: the first that is found in the name decides.
_KINDS = (
    (MODULATION, r"modulation|adaln|norm_out|(^|[._])(mod|time|guidance|t_embedder)([._]|$)"),
    (ATTENTION, r"attn|attention|to_[qkv]\b|[qkvo]_proj"),
    (MLP, r"mlp|feed_forward|\bff|linear_fc"),
)
_STREAMS = (
    (TEXT, r"txt|context|add_[qkv]_proj|to_add_out|cap_embedder"),
    (IMAGE, r"double_blocks\.\d+\.img|^transformer_blocks|noise_refiner|modulation_img|img_in|x_embedder"),
)


def position_of(weight: str) -> LayerPosition:
    """`weight`: a parameter of the diffusion model as `lora.Target` names it."""
    match = re.match(r"(.*?)\.(\d+)\.", weight + ".")
    blocks, index = (
        (match.group(1), int(match.group(2))) if match and not _numbered(match.group(1)) else ("", 0)
    )
    return LayerPosition(blocks, index, _first(_STREAMS, weight, ""), _kind(weight))


def _kind(weight: str) -> str:
    return BOTH if attention_part_of(weight) else _first(_KINDS, weight, OTHER)


def _numbered(name: str) -> bool:
    """Whether a number after this name counts layers of one block and not blocks: `t_embedder.mlp.0`."""
    return bool(re.search(r"mlp$|embed|modulation$|merger|\bnet$", name))


def _first(rules: tuple[tuple[str, str], ...], name: str, otherwise: str) -> str:
    return next((word for word, pattern in rules if re.search(pattern, name, re.IGNORECASE)), otherwise)
