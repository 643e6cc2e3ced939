"""Any shipped workflow as a prompt for the real server, in few steps and with the pictures that it brings."""

from __future__ import annotations

from typing import Any

from i2l.tools.comfy_client import ComfyClient, Result
from i2l.tools.host import ROOT
from i2l.tools.template_pictures import prompt_of

WORKFLOWS = ROOT / "workflows"
SAMPLERS = ("KSampler", "Flux2Scheduler", "BasicScheduler")

Prompt = dict[str, dict[str, Any]]


def shipped(server: ComfyClient, name: str, steps: int = 3) -> Prompt:
    """What the front end queues for workflows/NAME.json, but for the number of steps."""
    prompt = prompt_of(server, name)
    for node in prompt.values():
        if node["class_type"] in SAMPLERS:
            node["inputs"]["steps"] = steps
    return prompt


def titled(prompt: Prompt, title: str, kind: str = "") -> str:
    """The id of the only node with a title, of a class where several have it."""
    found = [
        key
        for key, node in prompt.items()
        if node["_meta"]["title"] == title and kind in ("", node["class_type"])
    ]
    (key,) = found
    return key


def images(server: ComfyClient, result: Result, node: str) -> list[bytes]:
    """The files of all pictures of a node."""
    assert result.ok, result.error_message
    return [server.image(picture) for picture in result.images(node)]
