"""Two styles fused, drawn and morphed on the real server, as the front end queues it."""

from __future__ import annotations

from typing import Any

import pytest
from server_graphs import Prompt
from tiny_world import save_random_predictor

from i2l.i2l_core.lora_files import file as lora_file
from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server


def predicted() -> Prompt:
    """Two LoRAs of the demo world, "blue" and "red"."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {"demo": ("LoadI2LDemo", {})}
    for name, colour in (("blue", 0x3366CC), ("red", 0xCC3333)):
        size = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
        nodes[f"{name} picture"] = ("EmptyImage", size)
        nodes[name] = ("ImagesToLoRA", {"predictor": ["demo", 3], "images.image0": [f"{name} picture", 0]})
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def fusion(method: str, **settings: float) -> dict[str, Any]:
    inputs: dict[str, Any] = {"loras": "2", "loras.weight_1": 1.0, "loras.weight_2": 0.5, "method": method}
    inputs |= {"loras.lora_1": ["blue", 0], "loras.lora_2": ["red", 0]}
    inputs |= {f"method.{name}": value for name, value in settings.items()}
    return {"class_type": "FuseLoRAs", "inputs": inputs}


def test_a_fusion_is_told_about_saved_and_drawn(comfy_server: ComfyServer, server: ComfyClient):
    prompt = {
        **predicted(),
        "fuse": fusion("svd", rank=2, energy=1.0),
        "save": {"class_type": "SavePredictedLoRA", "inputs": {"lora": ["fuse", 0], "filename": "fused"}},
        "draw": {"class_type": "LoRAPreview", "inputs": {"lora": ["fuse", 0], "compare": ["red", 0]}},
    }
    result = server.queue(prompt)
    assert result.ok, result.error_message
    assert "% of the energy kept" in result.outputs["fuse"]["text"][0]
    saved = lora_file.load(comfy_server.base / "models" / "loras" / "fused.safetensors")
    assert saved.base_model == "i2l-tiny"
    assert len(saved.references) == 2
    (picture,) = result.images("draw")
    assert server.image(picture).startswith(b"\x89PNG")


def test_a_morph_runs_what_follows_once_for_each(server: ComfyClient):
    sampling = {
        "seed": 1,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    sampling |= {"positive": ["text", 0], "negative": ["text", 0], "latent_image": ["latent", 0]}
    size = {"width": 128, "height": 128, "batch_size": 1}
    nodes = {
        "apply": ("ApplyPredictedLoRA", {"model": ["demo", 0], "lora": ["fuse", 0], "strength": 1.0}),
        "text": ("CLIPTextEncode", {"clip": ["demo", 1], "text": "one star"}),
        "latent": ("EmptySD3LatentImage", size),
        "sample": ("KSampler", {"model": ["apply", 0], **sampling}),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["demo", 2]}),
        "show": ("PreviewImage", {"images": ["decode", 0]}),
    }
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    result = server.queue({**predicted(), "fuse": fusion("morph", frames=3, rank=0), **prompt})
    assert result.ok, result.error_message
    pictures = [server.image(picture) for picture in result.images("show")]
    assert len(pictures) == len(set(pictures)) == 3


def test_loras_for_two_base_models_fail_at_the_node(comfy_server: ComfyServer, server: ComfyClient):
    folder = comfy_server.base / "models" / "i2l"
    folder.mkdir(parents=True, exist_ok=True)
    path = save_random_predictor(folder / "other.safetensors", "flux2-klein-4b")
    prompt = {
        **predicted(),
        "fuse": fusion("concat"),
        "draw": {"class_type": "LoRAPreview", "inputs": {"lora": ["fuse", 0]}},
    }
    prompt["load"] = {"class_type": "LoadI2LPredictor", "inputs": {"predictor_name": path.name}}
    prompt["red"]["inputs"]["predictor"] = ["load", 0]
    result = server.queue(prompt)
    path.unlink()
    assert result.status == "error"
    assert result.error is not None
    assert result.error["node_id"] == "fuse"
    message = result.error["exception_message"].strip()
    assert "LoRA 1 is for" in message
    assert "LoRA 2 for FLUX.2 klein 4B (flux2-klein-4b)" in message
