"""LoRA files of every layout, and LORA_MODEL values: refused, or each change of a weight as large as the file says."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from i2l_core.inspection import inspect_path
from i2l_core.lora import LoRA
from i2l_core.lora_files.file import load
from i2l_core.lora_files.tensors import from_state_dict, to_state_dict

from .case import Case, Wrong
from .safetensors_file import Entry, Parts, mutated
from .values import text, value

# before a layer's name, after it for down and up, and what stands for its dots
_LAYOUTS = (
    ("diffusion_model.", ".lora_down.weight", ".lora_up.weight", "."),
    ("transformer.", ".lora_A.weight", ".lora_B.weight", "."),
    ("", ".lora_A.default.weight", ".lora_B.default.weight", "."),
    ("base_model.model.", ".lora_A.weight", ".lora_B.weight", "."),
    ("lora_unet_", ".lora_down.weight", ".lora_up.weight", "_"),
    ("unet.", ".lora.down.weight", ".lora.up.weight", "."),
)
_LAYERS = (
    ("layers.0.attention.qkv", 256, 768),
    ("layers.1.attention.to_q", 256, 256),
    ("layers.1.attention.to_k", 256, 256),
    ("layers.2.feed_forward.w2", 768, 256),
    ("blocks.3.attn.proj", 12, 8),
    ("single_blocks.4.linear1", 160, 1120),
    ("text_encoder.layers.0.mlp.fc1", 8, 8),
)


def lora_file(rng: random.Random, folder: Path) -> Case:
    before, down, up, dot = rng.choice(_LAYOUTS)
    entries = []
    for name, d_in, d_out in rng.sample(_LAYERS, rng.randrange(1, 4)):
        rank = rng.choice((1, 2, 4))
        name = before + name.replace(".", dot)
        entries += [_entry(rng, name + down, (rank, d_in)), _entry(rng, name + up, (d_out, rank))]
        if rng.random() < 0.3:
            entries.append(_entry(rng, f"{name}.alpha", rng.choice(((), (1,)))))
    content = mutated(rng, Parts(tuple(entries), rng.choice(({}, {"lora_alpha": "3"}, {"i2l": _about()}))))
    path = folder / "a.safetensors"
    path.write_bytes(content)

    def check() -> None:
        inspect_path(path)
        _same_sizes(load(path), load_file(path), _header(content))

    return Case(content, check)


def lora_model(rng: random.Random, folder: Path) -> Case:
    before, down, up, _ = rng.choice(_LAYOUTS)
    name, d_in, d_out = rng.choice(_LAYERS)
    given: dict[Any, Any] = {
        before + name + down: torch.ones(2, d_in),
        before + name + up: torch.ones(d_out, 2),
    }
    for _ in range(rng.randrange(3)):
        key = rng.choice((*given, text(rng), 7, None, ("a", 1), b"x", before + name + ".alpha"))
        odd = (
            torch.ones(2, 3, dtype=torch.int32),
            torch.tensor(math.inf),
            torch.ones(2, 2, dtype=torch.complex64),
        )
        odd += (torch.ones(2, d_in).to(torch.float8_e4m3fn), torch.ones(0, 2), torch.ones(1, 1, 1))
        given[key] = rng.choice((*odd, value(rng)))

    def check() -> None:
        _same_sizes(from_state_dict(given, source="the LORA_MODEL"), given, {})

    return Case(repr(given).encode(errors="backslashreplace")[:1024], check)


def _entry(rng: random.Random, name: str, shape: tuple[int, ...]) -> Entry:
    values = (
        torch.rand(math.prod(shape), generator=torch.Generator().manual_seed(rng.randrange(1 << 30))) + 0.5
    )
    return Entry(name, "F32", shape, values.numpy().tobytes())


def _about() -> str:
    said = {"format": "i2l-lora", "version": 1, "base_model": {"id": "i2l-tiny", "title": ""}}
    return json.dumps({**said, "predictor": "p", "references": ["a"], "rank": 2})


def _header(content: bytes) -> Mapping[str, str]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}


def _same_sizes(lora: LoRA, tensors: Mapping[Any, Any], header: Mapping[str, str]) -> None:
    """|B A x| of every layer, x = 1: the order of rows, which the host may have otherwise, does not change it."""
    sizes = []
    for key, down in tensors.items():
        for _, down_end, up_end, _ in _LAYOUTS:
            name = str(key).removesuffix(down_end)
            up = tensors.get(f"{name}{up_end}")
            if not str(key).endswith(down_end) or up is None or not down.ndim == up.ndim == 2:
                continue
            if len(down) == up.shape[1]:
                alpha = tensors.get(
                    f"{name}.alpha", float(header["lora_alpha"]) if "lora_alpha" in header else None
                )
                sizes.append(_size(down, up, len(down) if alpha is None else float(alpha)))
            break
    found = [_size(layer.down, layer.up, layer.rank) for layer in lora.layers.values()]
    if not all(
        any(math.isclose(one, other, rel_tol=2e-2, abs_tol=1e-30) for other in sizes) for one in found
    ):
        raise Wrong(f"layers of sizes {found}, the file has {sizes}")
    if len(found) + sum(lora.left_out.values()) < len(sizes):
        raise Wrong(f"{len(found)} layers, the file has {len(sizes)}")
    for name, tensor in to_state_dict(lora).items():
        if not bool(torch.isfinite(tensor).all()):
            raise Wrong(f"{name} is not finite")


def _size(down: Tensor, up: Tensor, alpha: float) -> float:
    return float((up.double() @ down.double().sum(1)).norm()) * abs(alpha) / len(down)


MAKERS = {"lora_file": lora_file, "lora_model": lora_model}
