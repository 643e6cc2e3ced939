"""Prompts for the real server, made from the workflow that ships, and what comes back."""

from __future__ import annotations

import copy
import io
import json
import threading
from typing import Any

import torch
from PIL import Image

from i2l.tools.api_graph import only_pictures
from i2l.tools.comfy_client import ComfyClient, Event, Result
from i2l.tools.graph_to_api import graph_to_api
from i2l.tools.host import ROOT

WORKFLOW = ROOT / "workflows" / "start_here.json"
REFERENCES = sorted((ROOT / "workflows" / "references").glob("neon_*.png"))

Prompt = dict[str, dict[str, Any]]


def find(prompt: Prompt, kind: str) -> str:
    """The id of the only node of a class."""
    (key,) = (key for key, node in prompt.items() if node["class_type"] == kind)
    return key


def start_here(server: ComfyClient) -> Prompt:
    """What start_here.json saves, as the front end would queue it, with the shipped pictures uploaded, in few steps."""
    names = {path.name: server.upload(path.name, path.read_bytes()) for path in REFERENCES}
    found, _ = only_pictures(graph_to_api(json.loads(WORKFLOW.read_text("utf-8")), server.object_info()))
    for node in found.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = names[node["inputs"]["image"]]
    assert found[find(found, "KSampler")]["inputs"]["steps"] == 20
    found[find(found, "KSampler")]["inputs"]["steps"] = 3
    return found


def changed(prompt: Prompt, kind: str, **inputs: Any) -> Prompt:
    new = copy.deepcopy(prompt)
    new[find(new, kind)]["inputs"].update(inputs)
    return new


def graph(**nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def extended(prompt: Prompt, **nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return {**copy.deepcopy(prompt), **graph(**nodes)}


def both_loras(predict: str, demo: str, **more: Any) -> dict[str, Any]:
    """Inputs of the nodes for asymmetric guidance."""
    loras = {"style": [predict, 0], "neutral": [predict, 1], "strength": 1.0, "neutral_strength": 1.0}
    return {"model": [demo, 0], **loras, **more}


def guided(prompt: Prompt, cfg: float) -> Prompt:
    """start_here with AsymmetricGuider and SamplerCustomAdvanced in place of KSampler."""
    predict, demo, sampler = (find(prompt, kind) for kind in ("ImagesToLoRA", "LoadI2LDemo", "KSampler"))
    given = prompt[sampler]["inputs"]
    texts = {side: given[side] for side in ("positive", "negative")}
    steps = {"scheduler": given["scheduler"], "steps": given["steps"], "denoise": 1.0, "model": [demo, 0]}
    parts = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["steps", 0]}
    return extended(
        changed(prompt, "VAEDecode", samples=["sample", 0]),
        guider=("AsymmetricGuider", both_loras(predict, demo, cfg=cfg, **texts)),
        noise=("RandomNoise", {"noise_seed": given["seed"]}),
        euler=("KSamplerSelect", {"sampler_name": given["sampler_name"]}),
        steps=("BasicScheduler", steps),
        sample=("SamplerCustomAdvanced", {**parts, "latent_image": given["latent_image"]}),
    )


def pixels(client: ComfyClient, result: Result, node: str | None = None) -> torch.Tensor:
    assert result.ok, result.error_message
    (picture,) = result.images(node)
    with Image.open(io.BytesIO(client.image(picture))) as image:
        data = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(data, dtype=torch.uint8).view(image.height, image.width, 3).int()


def cancelled_at(client: ComfyClient, prompt: Prompt, node: str) -> Result:
    """Queue, and interrupt as soon as the node shows progress."""
    done = threading.Event()

    def cancel(event: Event) -> None:
        if event.type == "progress" and event.data.get("node") == node and not done.is_set():
            done.set()
            client.interrupt()

    result = client.queue(prompt, on_event=cancel)
    assert done.is_set()
    return result
