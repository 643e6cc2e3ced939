"""Guess what an unexpected file is and where it belongs, for error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# first bytes -> what it is
_MAGIC = (
    (b"PK", "it is a zip or PyTorch pickle (.pt, .ckpt), which is never read; get the .safetensors form"),
    (b"\x80", "it is a pickle, which is never read; get the .safetensors form"),
    (b"GGUF", "it is a GGUF model, not a predictor"),
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the file itself; run git lfs pull or download the file",
    ),
    (b"<", "it is a web page, not the file itself; download it again"),
)

_LORA_ENDS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight")
_LORA_ENDS += (".lora_A.default.weight", ".lora_B.default.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w2")

_CACHE = re.compile(r"(^|\.)(double|single)_\d+[._](k|v)$")  # keys or values of a block


def _ends(*ends: str) -> Callable[[str], bool]:
    return lambda key: key.endswith(ends)


def _starts(*starts: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(starts)


# test of a key -> what the file is; the first test that any key passes
_KINDS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (_ends(*_LORA_ENDS), "it is a LoRA; put it into models/loras"),
    (
        lambda key: ".proj_a.proj_in." in key or ".proj_b.proj_out." in key,
        "it is an i2L version 1 predictor of DiffSynth-Studio, of another architecture",
    ),
    (
        lambda key: (
            ".prefer_value_embedder." in key or ".img_to_qkv." in key or _CACHE.search(key) is not None
        ),
        "it is a Diffusion Template; put it into models/i2l and use Load Template",
    ),
    (
        _starts("model.diffusion_model."),
        "it is a diffusion checkpoint; put it into models/checkpoints",
    ),
    (
        _starts(
            "diffusion_model.",
            "double_blocks.",
            "single_blocks.",
            "layers.0.attention.",
            "noise_refiner.",
            "transformer_blocks.",
            "single_transformer_blocks.",
            "language_model.layers.",
            "input_blocks.",
            "blocks.0.self_attn.",
        ),
        "it is a diffusion model; put it into models/diffusion_models",
    ),
    (
        _starts("predictor."),
        "it has no i2l metadata, so the network cannot be rebuilt; get the original file",
    ),
    (
        _starts("vision_model.", "embeddings.patch_embedding", "visual.", "post_layernorm."),
        "it is a vision encoder alone; put it into models/clip_vision",
    ),
    (
        _starts("text_model.", "model.embed_tokens.", "model.layers.", "encoder.block.", "shared.weight"),
        "it is a text encoder; put it into models/text_encoders",
    ),
    (
        _starts("first_stage_model.", "decoder.", "encoder.down", "encoder.conv_in", "taef", "taesd"),
        "it is a VAE; put it into models/vae",
    ),
)


def describe_bytes(path: Path, error: Exception) -> str:
    """Describe a file that cannot be opened as safetensors. `error`: the exception of opening it."""
    if not os.path.lexists(path):  # does not raise for names that are too long
        return "there is no such file"
    if not os.path.isfile(path):
        return "it is not a file"
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as problem:
        return f"it cannot be read ({problem.strerror})"
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    return f"it is truncated or not a safetensors file ({error}); download it again"


def describe_tensors(keys: Iterable[str], metadata: Mapping[str, str]) -> str:
    """Describe a valid safetensors file without i2l metadata."""
    keys = list(keys)
    if "ss_network_module" in metadata:
        return "it is a LoRA; put it into models/loras"
    for matches, kind in _KINDS:
        if any(matches(key) for key in keys):
            return kind
    return "it has no i2l metadata and no known tensors; predictors go into models/i2l"
