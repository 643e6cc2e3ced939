"""Every shipped workflow of the demo world on the real server: it runs to a picture, and shows what it promises."""

from __future__ import annotations

import copy
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from server_graphs import changed, find
from shipped_workflows import WORKFLOWS, images, shipped, titled

from i2l.i2l_core.lora_files import file as lora_file
from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer
from i2l.tools.graph_to_api import graph_to_api
from i2l.tools.host import ROOT, find_host
from i2l.tools.setup import HOST_VERSION, version_of
from i2l.tools.workflows import made

pytestmark = pytest.mark.server


def array(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        pixels = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).int()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of a value, of 255."""
    return float((one - other).abs().max())


def test_the_files_are_what_the_builder_makes(server: ComfyClient):
    """After a change of a schema: python -m tools.workflows. Core nodes of another version have other inputs."""
    if version_of(find_host().path) != HOST_VERSION:
        pytest.skip("the files are made from the schemas of the pinned ComfyUI")
    workflows = made(server.object_info())
    assert {path.stem for path in WORKFLOWS.glob("*.json")} == set(workflows)
    for name, workflow in workflows.items():
        assert json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")) == workflow, name
        api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))
        assert api == graph_to_api(workflow, server.object_info()), name


def test_the_script_of_the_docs_draws_a_picture(server: ComfyClient, tmp_path: Path):
    code = (ROOT / "docs" / "scripts.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    code = code.replace("http://127.0.0.1:8188", server.url).replace("custom_nodes/ComfyUI-i2L", str(ROOT))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (picture,) = tmp_path.iterdir()
    with Image.open(picture) as image:
        assert image.size == (128, 128)


def test_many_references_are_one_prediction_in_which_weights_and_mask_count(server: ComfyClient):
    prompt = shipped(server, "many_references")
    every = titled(prompt, "From four pictures")
    shown = {title: titled(prompt, title, "SaveImage") for title in ("All four", "The page alone")}
    result = server.queue(prompt)
    four, one = (array(*images(server, result, key)) for key in shown.values())
    assert gap(four, one) > 10
    assert result.outputs[every]["text"][0].startswith("4 references")
    lora = lora_of_node(server, prompt, every)
    for title, change in (("Counts double", {"weight": 1.0}), ("Only a part", {"mask": None})):
        other = copy.deepcopy(prompt)
        other[titled(other, title)]["inputs"].update(change)
        other[titled(other, title)]["inputs"] = {
            name: value for name, value in other[titled(other, title)]["inputs"].items() if value is not None
        }
        assert lora_of_node(server, other, every) != lora, title


def lora_of_node(server: ComfyClient, prompt, node: str) -> bytes:
    """A drawing of the LoRA that a node gives: equal when the LoRA is."""
    parts = {
        key: value for key, value in prompt.items() if value["class_type"] not in ("SaveImage", "KSampler")
    }
    draw = {"class_type": "LoRAPreview", "inputs": {"lora": [node, 0], "width": 600}}
    (picture,) = images(server, server.queue({**parts, "draw": draw}), "draw")
    return picture


def test_tones_move_the_colours_towards_their_references(server: ComfyClient):
    prompt = shipped(server, "tone_only", steps=6)
    assert not {node["class_type"] for node in prompt.values()} & {"ImagesToLoRA", "LoadI2LPredictor"}
    titles = ("The prompt alone", "Tone of A", "Tone of B")
    shown = [titled(prompt, title, "SaveImage") for title in titles]
    result = server.queue(prompt)
    plain, *toned = (array(*images(server, result, key)).float().mean((0, 1)) for key in shown)
    for mean, reference in zip(toned, ("neon_1", "blueprint_1"), strict=True):
        wanted = array((WORKFLOWS / "references" / f"{reference}.png").read_bytes()).float().mean((0, 1))
        assert (mean - wanted).norm() < 0.6 * (plain - wanted).norm()


def test_a_fusion_is_like_neither_style(server: ComfyClient):
    prompt = shipped(server, "fuse_styles")
    shown = [titled(prompt, title, "SaveImage") for title in ("Style A", "The mix", "Style B")]
    result = server.queue(prompt)
    a, mix, b = (array(*images(server, result, key)) for key in shown)
    assert min(gap(a, mix), gap(mix, b), gap(a, b)) > 10


def test_asymmetric_guidance_differs_from_plain_and_only_where_there_is_a_negative_side(server: ComfyClient):
    prompt = shipped(server, "asymmetric_guidance")
    shown = [titled(prompt, title, "SaveImage") for title in ("Plain CFG", "Asymmetric CFG")]
    assert prompt[find(prompt, "PrimitiveFloat")]["inputs"]["value"] == 7.0
    plain, asymmetric = (array(*images(server, server.queue(prompt), key)) for key in shown)
    assert gap(plain, asymmetric) > 10
    at_1 = server.queue(changed(prompt, "PrimitiveFloat", value=1.0))
    assert gap(*(array(*images(server, at_1, key)) for key in shown)) <= 2


def test_a_library_is_saved_under_the_names_of_its_folders(server: ComfyClient, comfy_server: ComfyServer):
    prompt = changed(shipped(server, "style_library"), "ImagesFromFolder", most_pictures=2)
    result = server.queue(prompt)
    pictures = images(server, result, find(prompt, "SaveImage"))
    assert len(set(pictures)) == 4
    saved = sorted((comfy_server.base / "models" / "loras" / "i2l" / "styles").iterdir())
    assert [path.name for path in saved] == [
        f"{style}.safetensors" for style in ("chalk", "clay", "poster", "watercolour")
    ]
    assert [len(lora_file.load(path).references) for path in saved] == [2] * 4


def test_inpainting_leaves_every_pixel_outside_of_the_mask(server: ComfyClient):
    prompt = shipped(server, "img2img_inpaint")
    shown = [titled(prompt, title) for title in ("Inpaint: inside the mask", "Img2img: all of it")]
    result = server.queue(prompt)
    inside, everywhere = (array(*images(server, result, key)) for key in shown)
    references = WORKFLOWS / "references"
    scene = array((references / "scene.png").read_bytes())
    mask = array((references / "scene_mask.png").read_bytes())[..., 0] > 127
    assert torch.equal(inside[~mask], scene[~mask])
    assert gap(inside[mask], scene[mask]) > 50
    assert gap(everywhere[~mask], scene[~mask]) > 50
    assert gap(everywhere, inside) > 10


def test_styles_stay_in_their_regions(server: ComfyClient):
    prompt = shipped(server, "style_regions")
    shown = titled(prompt, "Save Image")
    prompts = prompt, _with_style_a_alone(prompt)
    both, alone = (array(*images(server, server.queue(each), shown)) for each in prompts)
    change = (both - alone).abs().float().mean((0, 2))  # of each column
    middle = len(change) // 2
    assert change[middle + 8 :].mean() > 40
    assert change[: middle - 8].mean() < 0.25 * change[middle + 8 :].mean()


def _with_style_a_alone(prompt):
    other = copy.deepcopy(prompt)
    other[titled(other, "Region B")]["inputs"]["lora"] = [titled(other, "LoRA of style A"), 0]
    return other


def test_a_morph_starts_and_ends_with_the_single_styles(server: ComfyClient):
    prompt = shipped(server, "morph")
    result = server.queue(prompt)
    frames = [array(data) for data in images(server, result, titled(prompt, "One by one"))]
    assert len(frames) == 6
    assert all(gap(one, two) > 2 for one, two in itertools.pairwise(frames))
    (row,) = images(server, result, titled(prompt, "The row"))
    assert array(row).shape[1] > 5 * array(row).shape[0]
    for title, frame in (("LoRA of style A", frames[0]), ("LoRA of style B", frames[-1])):
        alone = changed(prompt, "ApplyPredictedLoRA", lora=[titled(prompt, title), 0])
        (single,) = images(server, server.queue(alone), titled(prompt, "One by one"))
        assert gap(array(single), frame) <= 2


def test_structure_and_brightness_go_beside_a_style(server: ComfyClient):
    """The same seed and style: the figure lies where the picture has it, and then everything is brighter."""
    prompt = shipped(server, "structure_brightness")
    shown = [titled(prompt, title, "SaveImage") for title in ("Style", "+ structure", "+ brightness")]
    result = server.queue(prompt)
    style, placed, bright = (array(*images(server, result, key)).float() for key in shown)
    white = array((WORKFLOWS / "references" / "structure.png").read_bytes())[..., 0] > 127

    def overlap(picture: torch.Tensor) -> float:
        """Of the yellow figure on its blue ground with the white part."""
        figure = picture[..., 0] > picture[..., 2]
        return float((figure & white).sum() / (figure | white).sum())

    assert overlap(placed) > overlap(style) + 0.05
    assert bright.mean() > placed.mean() + 10
    (value,) = (key for key, node in prompt.items() if node["class_type"] == "TemplateValue")
    dark = copy.deepcopy(prompt)
    dark[value]["inputs"]["scale.value"] = 0.2
    assert array(*images(server, server.queue(dark), shown[2])).float().mean() < placed.mean() - 10
