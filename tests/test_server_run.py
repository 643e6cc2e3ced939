"""The workflow a newcomer opens first, on the real server: from pictures to a styled picture."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from server_graphs import REFERENCES, Prompt, cancelled_at, changed, extended, find, pixels

from i2l.i2l_core.lora_files import file as lora_file
from i2l.tools.comfy_client import ComfyClient, Result
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def first(server: ComfyClient, prompt: Prompt) -> Result:
    """The first run of the workflow, with nothing of it left from other tests."""
    other = copy.deepcopy(prompt)
    del other[find(other, "ImagesToLoRA")]["inputs"]["images.image3"]
    assert server.queue(other).ok  # the host keeps the results of the last prompt only
    return server.queue(prompt)


def test_the_workflow_gives_a_picture(server: ComfyClient, prompt: Prompt, first: Result):
    assert pixels(server, first).shape == (128, 128, 3)
    predict = find(prompt, "ImagesToLoRA")
    assert "4 references" in first.outputs[predict]["text"][0]
    assert " of " in first.outputs[find(prompt, "ApplyPredictedLoRA")]["text"][0]
    shown = [event.data for event in first.events if event.type == "progress"]
    assert any(data["node"] == predict and data["max"] == 6 for data in shown)


def test_the_picture_is_styled_and_strength_zero_is_the_plain_model(
    server: ComfyClient, prompt: Prompt, first: Result
):
    zero = server.queue(changed(prompt, "ApplyPredictedLoRA", strength=0.0))
    demo = find(prompt, "LoadI2LDemo")
    plain = server.queue(changed(prompt, "KSampler", model=[demo, 0]))
    assert torch.equal(pixels(server, zero), pixels(server, plain))
    assert not torch.equal(pixels(server, first), pixels(server, plain))


def test_the_model_is_clean_after_styling(server: ComfyClient, prompt: Prompt, first: Result):
    """Styled, plain, styled again: the pictures of a kind are bit-identical."""
    again = server.queue(changed(prompt, "KSampler", seed=8))
    back = server.queue(changed(prompt, "KSampler", seed=7))
    assert torch.equal(pixels(server, back), pixels(server, first))
    assert not torch.equal(pixels(server, again), pixels(server, first))


def test_a_second_run_predicts_nothing_again(server: ComfyClient, prompt: Prompt, first: Result):
    second = server.queue(changed(prompt, "ApplyPredictedLoRA", strength=0.75))
    assert find(prompt, "ImagesToLoRA") in second.cached
    assert find(prompt, "LoadI2LDemo") in second.cached
    assert find(prompt, "ApplyPredictedLoRA") in second.executed
    assert set(server.queue(prompt).executed).isdisjoint({find(prompt, "ImagesToLoRA")})


def test_a_saved_file_gives_the_same_picture_through_the_stock_loader(
    server: ComfyClient, comfy_server: ComfyServer, prompt: Prompt, first: Result
):
    predict, demo = find(prompt, "ImagesToLoRA"), find(prompt, "LoadI2LDemo")
    inputs = {"lora": [predict, 0], "filename": "i2l/server", "notes": "woodcut ✓"}
    saving = {"save": {"class_type": "SavePredictedLoRA", "inputs": inputs}}
    saved = server.queue({**prompt, **saving})
    assert saved.ok, saved.error_message
    assert saved.outputs["save"]["text"] == ["saved as i2l/server.safetensors"]
    path = comfy_server.base / "models" / "loras" / "i2l" / "server.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.description"] == "woodcut ✓"
    about = json.loads(metadata["i2l"])
    assert about["base_model"]["id"] == "i2l-tiny"
    assert len(about["references"]) == len(REFERENCES)
    assert lora_file.load(path).n_layers > 0

    stock = changed(prompt, "KSampler", model=["stock", 0])
    stock = extended(
        stock,
        stock=(
            "LoraLoaderModelOnly",
            {"model": [demo, 0], "lora_name": "i2l/server.safetensors", "strength_model": 1.0},
        ),
    )
    assert torch.equal(pixels(server, server.queue(stock)), pixels(server, first))

    inputs["notes"] = "again"
    server.queue({**prompt, **saving})
    assert (path.parent / "server_00002.safetensors").exists()


def test_core_nodes_take_our_lora(
    server: ComfyClient, comfy_server: ComfyServer, prompt: Prompt, first: Result
):
    """Load LoRA Model, merged and bypassed, and Save LoRA Weights."""
    predict, demo = find(prompt, "ImagesToLoRA"), find(prompt, "LoadI2LDemo")
    for bypass in (False, True):
        graph = extended(
            changed(prompt, "KSampler", model=["core", 0]),
            core=(
                "LoraModelLoader",
                {"model": [demo, 0], "lora": [predict, 0], "strength_model": 1.0, "bypass": bypass},
            ),
            kept=("SaveLoRA", {"lora": [predict, 1], "prefix": "loras/neutral"}),
        )
        gap = pixels(server, server.queue(graph), find(prompt, "SaveImage")) - pixels(server, first)
        assert gap.abs().max() <= (2 if bypass else 0)
    (kept,) = (comfy_server.base / "output" / "loras").glob("neutral_*.safetensors")
    assert lora_file.load(kept).n_layers > 0
    assert "NOT LOADED" not in comfy_server.log
    assert "lora key not loaded" not in comfy_server.log


def test_cancelling_leaves_server_and_model_clean(server: ComfyClient, prompt: Prompt, first: Result):
    """Interrupted while it predicts from many pictures, and while it samples with the style."""
    long = changed(prompt, "KSampler", steps=2000, seed=5)
    assert cancelled_at(server, long, find(prompt, "KSampler")).status == "interrupted"

    many = copy.deepcopy(prompt)
    picture = many[find(many, "ImagesToLoRA")]["inputs"]["images.image0"]
    many["batch"] = {"class_type": "RepeatImageBatch", "inputs": {"image": picture, "amount": 4096}}
    many[find(many, "ImagesToLoRA")]["inputs"]["images.image0"] = ["batch", 0]
    assert cancelled_at(server, many, find(prompt, "ImagesToLoRA")).status == "interrupted"

    again = server.queue(changed(prompt, "KSampler", seed=9))
    assert again.ok, again.error_message
    back = server.queue(changed(prompt, "KSampler", seed=7))
    assert torch.equal(pixels(server, back), pixels(server, first))


def test_start_up_knows_the_template_and_its_pages(server: ComfyClient):
    templates = server.get("/workflow_templates")
    assert any("start_here" in names for names in templates.values())
    translations = server.get("/i18n")
    assert translations["zh"]["nodeDefs"]["ImagesToLoRA"]["display_name"] == "图像转 LoRA"
