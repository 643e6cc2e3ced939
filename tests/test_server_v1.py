"""A predictor of version 1 through the real server: what is missing is said, what is there is found and used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from server_graphs import Prompt
from tiny_encoders import TINY, WIDTH, save_encoder
from tiny_v1 import known, random_predictor, save

from i2l.i2l_core.encoders import DINOV3, KINDS, SIGLIP2, load_pooled
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.lora_files import file as lora_file
from i2l.i2l_core.predictors.v1.kinds import Z_IMAGE, V1Config
from i2l.i2l_core.references.files import read_reference
from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server

NAME = "v1/Z-Image-i2L.safetensors"


def graph(filename: str, **load: Any) -> Prompt:
    nodes = {
        "load": ("LoadI2LPredictor", {"predictor_name": NAME, **load}),
        "one": ("LoadImage", {"image": "v1_one.png"}),
        "other": ("LoadImage", {"image": "v1_other.png"}),
        "weighted": ("StyleReference", {"image": ["other", 0], "weight": 2.0}),
        "predict": (
            "ImagesToLoRA",
            {"predictor": ["load", 0], "images.image0": ["one", 0], "images.image1": ["weighted", 0]},
        ),
        "save": ("SavePredictedLoRA", {"lora": ["predict", 0], "filename": filename}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def distance(found: LoRA, expected: LoRA) -> float:
    """The largest relative error of a layer; one of every ten, as their changes are large."""
    return max(_error(found, expected, target) for target in list(expected.layers)[::10])


def _error(found: LoRA, expected: LoRA, target: Target) -> float:
    """`found` may have the rows of `target` in a layer of the whole weight."""
    layer, change = found.layers.get(target), expected.layers[target].delta()
    if layer is None:
        assert target.rows is not None
        whole = found.layers[replace(target, rows=None)]
        start, length = target.rows
        layer = LowRank(whole.down, whole.up[start : start + length])
    return float((layer.delta().float() - change).norm() / change.norm())


def test_a_predictor_of_version_1_from_files_to_a_lora_file(server: ComfyClient, comfy_server: ComfyServer):
    models = comfy_server.base / "models"
    config = V1Config(Z_IMAGE, known("z-image"), token_dim=WIDTH, code=2, rank=1)
    predictor = random_predictor(config)
    (models / "i2l" / "v1").mkdir(parents=True, exist_ok=True)
    save(predictor, models / "i2l" / NAME)
    pictures = []
    for name, size in (("v1_one.png", (64, 48)), ("v1_other.png", (50, 90))):
        Image.effect_noise(size, 90).convert("RGB").save(comfy_server.input / name)
        pictures.append(read_reference(comfy_server.input / name))

    missing = server.queue(graph("v1/none"))
    assert not missing.ok
    assert "needs image encoders that are missing" in missing.error_message
    files = []
    for kind in (SIGLIP2, DINOV3):
        path = models / "clip_vision" / KINDS[kind].file
        files.append(save_encoder(path, TINY[kind], torch.bfloat16))
    result = server.queue(graph("v1/whole"))
    assert result.ok, result.error_message
    assert result.outputs["predict"]["text"][0].startswith("2 references, rank 2, ")

    with torch.no_grad():
        x = torch.cat([load_pooled(file).encode([one.pixels for one in pictures]) for file in files], dim=1)
        expected = predictor(x, [1.0, 2.0])
    found = lora_file.load(models / "loras" / "v1" / "whole.safetensors")
    assert found.base_model == "z-image"
    assert distance(found, expected) < 1e-4

    result = server.queue(graph("v1/small", encoder_weights="8 bit"))
    assert result.ok, result.error_message
    about = result.outputs["load"]["text"][0]
    assert "i2L version 1, Z-Image-i2L, for Z-Image: rank 1 per picture, 238 layers" in about
    assert all(str(file) in about for file in files)
    small = lora_file.load(models / "loras" / "v1" / "small.safetensors")
    assert 1e-4 < distance(small, expected) < 0.5
