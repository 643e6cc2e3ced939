"""How a key of a LoRA file is built: PREFIX + NAME + SUFFIX.

The suffix says which tensor of the layer it is, the prefix who wrote the file or which network the layer is of.
What is between them is a layer's name (`names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

TensorKind = Literal["down", "up", "alpha"]
KeyFormat = Literal["ComfyUI", "diffusers", "DiffSynth"]
KEY_FORMATS: tuple[KeyFormat, ...] = ("ComfyUI", "diffusers", "DiffSynth")

# key format -> (before the name, after it for down, for up)
_WRITTEN: dict[KeyFormat, tuple[str, str, str]] = {
    "ComfyUI": ("diffusion_model.", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("transformer.", ".lora_A.weight", ".lora_B.weight"),
    "DiffSynth": ("", ".lora_A.default.weight", ".lora_B.default.weight"),
}
_ALPHA = ".alpha"
# .lora_down.weight (kohya), .lora_A.weight, .lora_A.ADAPTER.weight (PEFT), .lora_A (Mochi), .lora.down.weight,
# _lora.down.weight and .lora_linear_layer.down.weight (diffusers)
_MATRIX = re.compile(
    r"(?P<name>.+?)(?P<before>\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)"
    r"(?P<which>down|up|A|B)(?P<after>(?:\.[^.]+)?\.weight|)"
)
_WHICH: dict[str, TensorKind] = {"down": "down", "A": "down", "up": "up", "B": "up"}

# What trainers put in front of a layer of the diffusion model; in any order and number, dots or "_" after them.
_PREFIXES = (
    *("diffusion_model", "model", "module", "transformer", "base_model_model", "unet", "dit"),
    *("lora_unet", "lora_transformer", "lycoris"),
)
FLAT_PREFIXES = tuple(f"{prefix}_" for prefix in _PREFIXES)
_HOST_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
# a name that begins so is one of core's loader, not of the host's parameters
_OTHER_NAMES = re.compile(r"(lora_|lycoris_|transformer\.|unet\.|base_model\.)")

_NOT_OF_THE_MODEL = (
    (
        "layers of a text encoder",
        re.compile(
            r"(base_model\.model\.)?(text_encoders?(_\d)?|te\d?|lora_(prior_)?te\d?|lycoris_te\d?|conditioner"
            r"|clip_[lgh]|t5xxl)[._]"
        ),
    ),
    ("embeddings", re.compile(r"(bundle_emb|emb_params)(\.|$)")),
)
_OTHER_KINDS = (
    ("DoRA", r"\.(dora_scale|lora_magnitude_vector(\..+)?|magnitude)"),
    ("LoKr", r"\.lokr_[^.]+(\..+)?"),
    ("LoHa", r"\.hada_[^.]+(\..+)?"),
    ("OFT", r"\.(boft|oft)_[^.]+(\..+)?"),
    ("GLoRA", r"\.[ab][12]\.weight"),
    ("a convolution (LoCon) LoRA", r"\.lora_mid(\.weight)?"),
    ("weights of another size (reshape_weight)", r"\.reshape_weight"),
    ("full weight differences (.diff)", r"\.(diff(_b)?|[wb]_norm)"),
    ("weights to replace (set_weight)", r"\.set_weight"),
    ("a LoRA with biases", r"\.lora_(A|B|up|down)(\.[^.]+)?\.bias"),
    ("a LoRA of embeddings", r"\.lora_embedding_[AB](\..+)?"),
)


def split_key(key: object) -> tuple[TensorKind, str] | None:
    """(which tensor it is, the layer's name with its prefix), or None for what is no tensor of a plain LoRA."""
    if not isinstance(key, str):
        return None
    if found := _MATRIX.fullmatch(key):
        return _WHICH[found["which"]], found["name"]
    name = key.removesuffix(_ALPHA)
    return ("alpha", name) if name and name != key else None


def are_pair(down: str, up: str) -> bool:
    """Whether the keys of a down and an up matrix are of one spelling."""
    one, other = _MATRIX.fullmatch(down), _MATRIX.fullmatch(up)
    if one is None or other is None or {one["which"], other["which"]} not in ({"down", "up"}, {"A", "B"}):
        return False
    return (one["before"], one["after"]) == (other["before"], other["after"])


def not_of_the_model(key: object) -> str:
    """What a key is of when it is not of the diffusion model: of a text encoder, or embeddings; else ""."""
    return next((what for what, start in _NOT_OF_THE_MODEL if start.match(str(key))), "")


def left_out(keys: Iterable[object]) -> dict[str, int]:
    """How many layers or embeddings of each such kind there are under these keys."""
    found: dict[str, set[object]] = {}
    for key in keys:
        if what := not_of_the_model(key):
            tensor = split_key(key)
            found.setdefault(what, set()).add(tensor[1] if tensor else key)
    return {what: len(names) for what, names in found.items()}


def other_kind(key: object) -> str:
    """What a tensor is that is not of a plain LoRA, where its suffix says so; else ""."""
    return next((kind for kind, end in _OTHER_KINDS if re.search(rf"{end}$", str(key))), "")


def keys_of(key_format: KeyFormat, name: str) -> tuple[str, str, str]:
    """The keys (down, up, alpha) of a layer in files of this key format.

    In ComfyUI's, a name that is not of the host's parameters (`host_name`) stays as it is.
    """
    prefix, down, up = _WRITTEN[key_format]
    if key_format == "ComfyUI" and _OTHER_NAMES.match(name):
        prefix = ""
    return f"{prefix}{name}{down}", f"{prefix}{name}{up}", f"{prefix}{name}{_ALPHA}"


def host_name(name: str) -> str:
    """The host's parameter under this name, for layers of models that no table knows.

    Other prefixes than the host's own stay: ComfyUI's loader maps such names to parameters, and finds them only as
    they are.
    """
    for prefix in _HOST_PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return name
