"""The header of a LoRA file: what we say about a LoRA, and what LoRA managers and trainers read."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from ..base_models import find_model
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
