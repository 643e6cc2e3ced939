"""The header of a LoRA file: what we say about a LoRA, and what LoRA managers and trainers read."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..base_models import find_model
from ..checks import shown
from ..errors import I2LError
from ..lora import LoRA

METADATA_KEY = "i2l"
FORMAT = "i2l-lora"
VERSION = 1


def about(lora: LoRA) -> str:
    model = find_model(lora.base_model)
    base_model = {"id": lora.base_model, "title": model.title if model else ""}
    said = {
        "format": FORMAT,
        "version": VERSION,
        "base_model": base_model,
        "predictor": lora.predictor,
        "references": list(lora.references),
        "rank": lora.rank,
    }
    return json.dumps(said, ensure_ascii=False)


def read_about(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """What `about` wrote, as arguments of `tensors.from_state_dict`; nothing for the file of another tool."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        said = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise I2LError(f"{source}: its {METADATA_KEY!r} metadata is damaged: {error}") from error
    kind = said.get("format") if isinstance(said, dict) else None
    if kind != FORMAT:
        raise I2LError(f"{source}: expected a LoRA file ({FORMAT}), got {str(kind)[:40]!r}")
    if said.get("version") != VERSION:
        found = str(said.get("version"))[:20]
        raise I2LError(
            f"{source}: LoRA file version {found} is not known (known: {VERSION}); update ComfyUI-i2L"
        )
    model, predictor, references = said.get("base_model"), said.get("predictor"), said.get("references")
    base_model = model.get("id") if isinstance(model, dict) else None
    texts = [base_model, predictor, *(references if isinstance(references, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise I2LError(
            f"{source}: its {METADATA_KEY!r} metadata is damaged: base model, predictor or references"
        )
    return {"base_model": base_model, "predictor": predictor, "references": references}


_ADAPTER = re.compile(r"((transformer|unet|diffusion_model)\.)?(?P<name>lora_alpha|use_rslora|alpha_pattern)")


def read_scale(
    header: Mapping[str, str], peft_config: str, source: str
) -> Callable[[str, int], float] | None:
    """The factor on layers without a tensor for alpha, by (name, rank): what diffusers and PEFT say of it.

    alpha / rank, or with use_rslora alpha / sqrt(rank); alpha is lora_alpha, or what alpha_pattern says of the layer.
    diffusers keeps these in the header, each under the name of the network ("transformer."), as one JSON text or as
    entries of their own; PEFT in adapter_config.json, whose text is `peft_config`. None where nothing is said. The ss_
    entries of kohya are not read: its files have tensors for alpha. Raises I2LError for values that are no finite
    number, and for patterns that are more than the name of a layer.
    """
    config: dict[str, Any] = dict(header)
    for text, where in (
        (header.get("lora_adapter_metadata", ""), "lora_adapter_metadata"),
        (peft_config, "adapter_config.json"),
    ):
        if text:
            config |= _json_object(text, where, source)
    said = {found["name"]: value for key, value in config.items() if (found := _ADAPTER.fullmatch(key))}
    if "lora_alpha" not in said:
        return None
    alpha = _number("lora_alpha", said["lora_alpha"], source)
    patterns = said.get("alpha_pattern") or {}
    if isinstance(patterns, str):
        patterns = _json_object(patterns, "alpha_pattern", source)
    if not isinstance(patterns, dict):
        raise I2LError(
            f"{source}: alpha_pattern must be a JSON object, got {shown(patterns)}; export it again"
        )
    alphas = {
        _layer_name(key, source): _number(f"alpha_pattern of {key}", value, source)
        for key, value in patterns.items()
    }
    stabilised = str(said.get("use_rslora", False)).lower() == "true"

    def scale(name: str, rank: int) -> float:
        end = (own for key, own in alphas.items() if f".{name}".endswith(f".{key}"))
        return next(end, alpha) / (math.sqrt(rank) if stabilised else rank)

    return scale


def _layer_name(pattern: str, source: str) -> str:
    """PEFT takes patterns as regular expressions; trainers write names of layers, at most with "^" before them."""
    name = pattern.removeprefix("^")
    if not re.fullmatch(r"[\w.-]+", name):
        raise I2LError(
            f"{source}: alpha_pattern {shown(pattern)} is not the name of a layer; save the LoRA with alpha as tensors"
        )
    return name


def _json_object(text: str, name: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise I2LError(f"{source}: its {name} is damaged: {error}; export it again") from error
    if not isinstance(value, dict):
        raise I2LError(f"{source}: its {name} must be a JSON object, got {shown(value)}; export it again")
    return value


def _number(name: str, value: Any, source: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last: of a number with hundreds of digits
        number = math.nan
    if not math.isfinite(number):
        raise I2LError(
            f"{source}: {name} in its header must be a finite number, got {shown(value)}; export it again"
        )
    return number


def for_managers(lora: LoRA, name: str) -> dict[str, str]:
    """What LoRA managers and trainers read.

    kohya's "ss_" keys, of which ComfyUI-Lora-Manager takes the base model as it stands, and modelspec 1.0.1
    (https://github.com/Stability-AI/ModelSpec).
    """
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    metadata = {
        "ss_output_name": name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.rank),  # alpha / dim is the 1 that the tensors are saved with
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": name,
        "modelspec.date": now.isoformat(),
    }
    model = find_model(lora.base_model)
    if model:
        metadata |= {
            "ss_base_model_version": model.manager_name,
            "modelspec.architecture": f"{model.modelspec_architecture}/lora",
            "modelspec.implementation": model.implementation,
        }
    return metadata
