"""The shipped workflows for real models, run whole with small stand-ins of their files: every link, widget and type."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import stand_ins
import torch
from PIL import Image
from server_graphs import find
from shipped_workflows import Prompt, images, shipped

from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server

SIDE = 64  # pixels, in place of 1024 and more
SIZED = ("EmptySD3LatentImage", "EmptyFlux2LatentImage", "EmptyHiDreamO1LatentImage")
NAMES = ("zimage_i2l", "zimage_turbo_i2l", "flux2_klein_i2l", "hidream_o1_i2l")
TEMPLATES = tuple(f"flux2_klein_{kind}_i2l" for kind in ("structure", "brightness", "template_inpaint"))


@pytest.fixture(scope="module")
def real(host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyClient]:
    """A server that has the stand-ins, and that allows templates to run their programs."""
    base = tmp_path_factory.mktemp("real")
    stand_ins.install(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("I2L_ALLOW_TEMPLATE_CODE", "1")
        with ComfyServer(base) as server:
            yield server.client()


def small(server: ComfyClient, name: str) -> Prompt:
    """The workflow as it ships, but for sizes, steps and the permission that only its user can give."""
    prompt = shipped(server, name, steps=2)
    for node in prompt.values():
        inputs, kind = node["inputs"], node["class_type"]
        if kind == "LoadI2LPredictor":
            assert inputs["allow_code"] is False
            inputs["allow_code"] = True
        if kind == "LoadTemplate":
            assert inputs["allow_code"] is False
            inputs["allow_code"] = "Inpaint" in inputs["template_name"]
        if kind == "ImageScaleToTotalPixels":
            inputs["megapixels"] = 0.01
        if kind == "PrimitiveInt":
            inputs["value"] = SIDE
        if kind in SIZED:
            inputs.update({side: SIDE for side in ("width", "height") if not isinstance(inputs[side], list)})
    return prompt


def picture(server: ComfyClient, prompt: Prompt) -> torch.Tensor:
    (data,) = images(server, server.queue(prompt), find(prompt, "SaveImage"))
    with Image.open(io.BytesIO(data)) as image:
        pixels = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).int()


def without(prompt: Prompt, kind: str) -> Prompt:
    """The model goes past the only node of a class."""
    new = copy.deepcopy(prompt)
    key = find(new, kind)
    source: Any = new.pop(key)["inputs"]["model"]
    for node in new.values():
        node["inputs"] = {n: source if v == [key, 0] else v for n, v in node["inputs"].items()}
    return new


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_a_picture_that_depends_on_the_references(real: ComfyClient, name: str):
    prompt = small(real, name)
    first = picture(real, prompt)
    assert first.shape == (SIDE, SIDE, 3)
    assert first.float().std() > 5  # it shows something
    predict = find(prompt, "ImagesToLoRA")
    prompt[predict]["inputs"] = {
        key: value for key, value in prompt[predict]["inputs"].items() if not key.startswith("images.image3")
    }
    assert not torch.equal(picture(real, prompt), first)


def test_structure_and_style_both_count(real: ComfyClient):
    prompt = small(real, "zimage_controlnet_i2l")
    both = picture(real, prompt)
    only_style, only_structure = (
        picture(real, without(prompt, kind)) for kind in ("ZImageFunControlnet", "AsymmetricCFG")
    )
    neither = picture(real, without(without(prompt, "ZImageFunControlnet"), "AsymmetricCFG"))
    pictures = [both, only_style, only_structure, neither]
    for i, one in enumerate(pictures):
        assert all(not torch.equal(one, other) for other in pictures[i + 1 :])


def test_inpainting_with_klein_keeps_what_is_outside_of_the_mask(real: ComfyClient):
    prompt = small(real, "flux2_klein_inpaint_i2l")
    found = picture(real, prompt)
    scaled = copy.deepcopy(prompt)
    scaled[find(scaled, "SaveImage")]["inputs"]["images"] = [find(scaled, "ImageScaleToTotalPixels"), 0]
    scene = picture(real, scaled)
    half = scene.shape[1] // 2  # the mask is the right half; at its edge it is softened
    assert torch.equal(found[:, : half - 2], scene[:, : half - 2])
    assert (found[:, half + 2 :] - scene[:, half + 2 :]).abs().max() > 20


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_and_a_style_both_count(real: ComfyClient, name: str):
    """The template's own program runs for inpainting alone: the others' would fail if they ran."""
    prompt = small(real, name)
    both = picture(real, prompt)
    assert both.float().std() > 5
    apply = find(prompt, "ApplyTemplate")
    plain = copy.deepcopy(prompt)
    given = plain.pop(apply)["inputs"]
    sides = {0: given["positive"], 1: given["negative"]}
    for node in plain.values():
        node["inputs"] = {
            n: sides.get(v[1], v) if isinstance(v, list) and v[0] == apply else v
            for n, v in node["inputs"].items()
        }
    if "inpaint" not in name:  # that one brings the latent too
        assert not torch.equal(picture(real, plain), both)
    predict = find(prompt, "ImagesToLoRA")
    fewer = copy.deepcopy(prompt)
    fewer[predict]["inputs"].pop("images.image3")
    assert not torch.equal(picture(real, fewer), both)


def test_a_template_inpaints_inside_the_mask_alone(real: ComfyClient):
    prompt = small(real, "flux2_klein_template_inpaint_i2l")
    found = picture(real, prompt)
    scaled = copy.deepcopy(prompt)
    (pictures,) = (v["inputs"]["image"] for v in prompt.values() if v["class_type"] == "TemplateInpaint")
    scaled[find(scaled, "SaveImage")]["inputs"]["images"] = pictures
    scene = picture(real, scaled)
    half = scene.shape[1] // 2
    assert torch.equal(found[:, : half - 2], scene[:, : half - 2])
    assert (found[:, half + 2 :] - scene[:, half + 2 :]).abs().max() > 20
