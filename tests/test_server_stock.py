"""The server helper itself, with stock nodes only."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from i2l.tools.comfy_client import ComfyClient, PromptRefused

pytestmark = pytest.mark.server

COLOR = 0x3366CC
PROMPT = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": COLOR},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "stock"}},
}


def test_prompt_runs_and_its_picture_comes_back(server: ComfyClient):
    result = server.queue(PROMPT)
    assert result.ok, result.error_message
    assert set(result.executed) <= {"1", "2"}
    (picture,) = result.images("2")
    with Image.open(io.BytesIO(server.image(picture))) as image:
        assert image.size == (16, 8)
        assert image.convert("RGB").getpixel((3, 3)) == (0x33, 0x66, 0xCC)


def test_second_run_is_answered_from_the_cache(server: ComfyClient):
    server.queue(PROMPT)
    assert "1" in server.queue(PROMPT).cached


def test_unknown_node_is_refused(server: ComfyClient):
    with pytest.raises(PromptRefused, match="NoSuchNode"):
        server.queue({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_wrong_link_is_refused_with_the_node_named(server: ComfyClient):
    prompt = {**PROMPT, "2": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["1", 0]}}}
    prompt["3"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}
    with pytest.raises(PromptRefused, match=r"node 2 \(VAEDecode\): Return type mismatch"):
        server.queue(prompt)


def test_error_while_running_is_reported(server: ComfyClient):
    name = server.upload("not_a_picture.png", b"nothing that Pillow reads")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    result = server.queue(prompt)
    assert result.status == "error"
    assert result.error_message.startswith("LoadImage: ")
    assert "2" not in result.executed


def test_only_private_folders_are_used(comfy_server, server: ComfyClient):
    server.queue(PROMPT)
    assert list((comfy_server.base / "output").glob("stock_*.png"))
    assert str(comfy_server.base) in comfy_server.log
    assert (comfy_server.base / "user" / "comfyui.db").exists()
