"""A folder of styles through the real server: one queue, one LoRA file for each style; and a LoRA file used live."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from server_graphs import Prompt, changed, extended, find, graph, pixels

from i2l.i2l_core.lora_files import file as lora_file
from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server


def test_every_style_of_a_folder_is_saved_under_its_name(server: ComfyClient, comfy_server: ComfyServer):
    folder = comfy_server.input / "library"
    for style, colours in {"charcoal": ["black", "white"], "gouache": ["red"], "spoiled": []}.items():
        (folder / style).mkdir(parents=True)
        for i, colour in enumerate(colours):
            Image.new("RGB", (64, 48), colour).save(folder / style / f"{i}.png")
    (folder / "gouache" / "broken.png").write_bytes(b"nothing that Pillow reads")
    result = server.queue(
        graph(
            demo=("LoadI2LDemo", {}),
            styles=("ImagesFromFolder", {"folder": "library", "most_pictures": 4}),
            predict=("ImagesToLoRA", {"predictor": ["demo", 3], "images.image0": ["styles", 0]}),
            save=("SavePredictedLoRA", {"lora": ["predict", 0], "filename": ["styles", 1]}),
        )
    )
    assert result.ok, result.error_message
    loras = comfy_server.base / "models" / "loras"
    charcoal, gouache = (lora_file.load(loras / f"{style}.safetensors") for style in ("charcoal", "gouache"))
    assert (len(charcoal.references), len(gouache.references)) == (2, 1)
    assert not (loras / "spoiled.safetensors").exists()
    report = result.outputs["styles"]["text"][0]
    assert "gouache/broken.png: expected a picture" in report
    assert "left out: spoiled: it holds no picture that can be read" in report


def test_a_saved_lora_of_another_layout_comes_back_as_a_lora(server: ComfyClient, prompt: Prompt):
    """Saved for DiffSynth, loaded by Load LoRA File and applied live: the picture of the predicted one."""
    predict, apply = find(prompt, "ImagesToLoRA"), find(prompt, "ApplyPredictedLoRA")
    inputs = {"lora": [predict, 0], "filename": "i2l/other", "layout": "DiffSynth"}
    saved = server.queue(extended(prompt, save=("SavePredictedLoRA", inputs)))
    assert saved.ok, saved.error_message
    loaded = extended(
        changed(prompt, "ApplyPredictedLoRA", lora=["file", 0], mode="live", curve="0: 1"),
        file=("LoadLoRAFile", {"lora_name": "i2l/other.safetensors"}),
    )
    result = server.queue(loaded)
    gap = pixels(server, result, find(prompt, "SaveImage")) - pixels(server, saved, find(prompt, "SaveImage"))
    assert gap.abs().max() <= 2
    assert "live: " in result.outputs[apply]["text"][0]


def test_weights_and_masks_of_references_reach_the_prediction(server: ComfyClient, prompt: Prompt):
    """A picture of weight 0 is one that is not connected."""
    sampler, predict = find(prompt, "SaveImage"), find(prompt, "ImagesToLoRA")
    images = [name for name in prompt[predict]["inputs"] if name.startswith("images.")]
    last = images[-1]
    silenced = extended(
        changed(prompt, "ImagesToLoRA", **{last: ["silent", 0]}),
        silent=("StyleReference", {"image": prompt[predict]["inputs"][last], "weight": 0.0}),
    )
    fewer = changed(prompt, "ImagesToLoRA")
    del fewer[predict]["inputs"][last]
    one, other = server.queue(silenced), server.queue(fewer)
    assert torch.equal(pixels(server, one, sampler), pixels(server, other, sampler))
    assert not torch.equal(pixels(server, one, sampler), pixels(server, server.queue(prompt), sampler))
