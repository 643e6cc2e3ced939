"""The nodes of Infinity in the real server, on tiny files with random weights in ComfyUI's own folders."""

from __future__ import annotations

import copy
import io
from typing import Any

import infinity_models as models
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from server_graphs import Prompt, cancelled_at, changed, extended, graph, pixels

from i2l.i2l_core.infinity.scales import SIZES, scales_of
from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.server

NAME = "tiny_infinity.safetensors"
HEIGHT, WIDTH = scales_of(1.0, SIZES[0]).pixels
SAMPLER = {
    "size": SIZES[0],
    "aspect": "1:1",
    "seed": 3,
    "cfg": 3.0,
    "batch_size": 1,
    "temperature": 0.0,
    "top_p": 0.97,
}
STYLE = {
    "strength": 1.0, "alpha": 1.0, "keep_structure": True, "structure_end": 1.0, "scale": 3, "mode": "blend", "k": 1,
    "draws": "shared",
}  # fmt: skip


@pytest.fixture(scope="module")
def infinity(host, comfy_server: ComfyServer) -> ComfyClient:
    """The server, with the files of a tiny Infinity among its models."""
    from i2l.i2l_core.host.infinity.text import TextConfig, _meta

    torch.manual_seed(2)
    text = _meta(TextConfig(models.TEXT, 16, 64, 4, 2)).state_dict()
    files = {
        "diffusion_models": models.released_weights(),
        "text_encoders": {n: torch.randn(t.shape) / t.shape[-1] ** 0.5 for n, t in text.items()},
        "vae": models.coder_weights(models.CODER_16),
    }
    for folder, weights in files.items():
        (comfy_server.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, comfy_server.base / "models" / folder / NAME)
    return comfy_server.client()


@pytest.fixture(scope="module")
def drawn(infinity: ComfyClient) -> Prompt:
    """A picture without a style."""
    return graph(
        model=("LoadInfinity", {"model_name": NAME, "weights": "default"}),
        clip=("LoadInfinityTextEncoder", {"text_encoder_name": NAME}),
        vae=("LoadInfinityVAE", {"vae_name": NAME}),
        text=("CLIPTextEncode", {"clip": ["clip", 0], "text": "a castle on a hill"}),
        draw=(
            "InfinitySampler",
            {"model": ["model", 0], "positive": ["text", 0], "preview_vae": ["vae", 0], **SAMPLER},
        ),
        decode=("VAEDecode", {"samples": ["draw", 0], "vae": ["vae", 0]}),
        save=("SaveImage", {"images": ["decode", 0], "filename_prefix": "infinity"}),
    )


@pytest.fixture(scope="module")
def reference(infinity: ComfyClient) -> str:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(values).save(data, "PNG")
    return infinity.upload("infinity_reference.png", data.getvalue())


def styled(drawn: Prompt, reference: str, **more: Any) -> Prompt:
    new = changed(drawn, "InfinitySampler", style=["style", 0])
    inputs = {"vae": ["vae", 0], "image": ["picture", 0], "fit": "cover", **STYLE, **more}
    return extended(new, picture=("LoadImage", {"image": reference}), style=("InfinityStyle", inputs))


def by_words(drawn: Prompt) -> Prompt:
    return extended(
        changed(drawn, "InfinitySampler", style=["style", 0]),
        words=("CLIPTextEncode", {"clip": ["clip", 0], "text": "an oil painting"}),
        style=("InfinityStyleFromWords", {"conditioning": ["words", 0], **STYLE}),
    )


def started(drawn: Prompt, reference: str) -> Prompt:
    return extended(
        changed(drawn, "InfinitySampler", start=["start", 0]),
        picture=("LoadImage", {"image": reference}),
        encode=("VAEEncode", {"pixels": ["picture", 0], "vae": ["vae", 0]}),
        start=("InfinityStartFromPicture", {"latent": ["encode", 0], "scales_kept": 4}),
    )


def content_of(prompt: Prompt) -> Prompt:
    return changed(prompt, "VAEDecode", samples=["draw", 1])


def test_styles_and_starts_give_pictures_of_their_own(infinity: ComfyClient, drawn: Prompt, reference: str):
    result = infinity.queue(drawn)
    plain = pixels(infinity, result)
    assert plain.shape == (HEIGHT, WIDTH, 3)
    assert plain.float().std() > 1
    assert result.outputs["draw"]["i2l_card"][0]["lines"] == [f"{WIDTH} x {HEIGHT} pixels"]
    found = [plain]
    for prompt in (styled(drawn, reference), by_words(drawn), started(drawn, reference)):
        picture = pixels(infinity, infinity.queue(prompt))
        assert all(not torch.equal(picture, other) for other in found)
        found.append(picture)
    assert torch.equal(pixels(infinity, infinity.queue(content_of(styled(drawn, reference)))), plain)


def test_progress_counts_up_to_its_end(infinity: ComfyClient, drawn: Prompt):
    result = infinity.queue(changed(drawn, "InfinitySampler", seed=11))
    values = [e.data["value"] for e in result.events if e.type == "progress" and e.data["node"] == "draw"]
    ends = {e.data["max"] for e in result.events if e.type == "progress" and e.data["node"] == "draw"}
    assert values == sorted(values)
    assert ends == {values[-1]}
    assert len(values) >= 7  # one for each scale; the server leaves out what follows quickly


def test_an_interrupt_leaves_the_next_run_the_same(infinity: ComfyClient, drawn: Prompt, reference: str):
    prompt = styled(drawn, reference)
    before = pixels(infinity, infinity.queue(prompt))
    large = changed(prompt, "InfinitySampler", size="1M", seed=5)
    assert cancelled_at(infinity, large, "draw").status == "interrupted"
    other = infinity.queue(changed(prompt, "InfinitySampler", seed=8))  # drops the cached picture
    assert other.ok, other.error_message
    again = infinity.queue(prompt)
    assert "draw" in again.executed
    assert torch.equal(pixels(infinity, again), before)


def test_a_style_without_its_content_says_so(infinity: ComfyClient, drawn: Prompt, reference: str):
    result = infinity.queue(content_of(styled(drawn, reference, structure_end=0.5)))
    assert not result.ok
    assert "set structure_end of Infinity Style to 1" in str(result.error_message)


def test_a_sampler_of_diffusion_models_refuses_the_picture(infinity: ComfyClient, drawn: Prompt):
    prompt = copy.deepcopy(drawn)
    prompt["demo"] = {"class_type": "LoadI2LDemo", "inputs": {}}
    prompt["words"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": "one star"}}
    inputs = {
        "model": ["demo", 0],
        "positive": ["words", 0],
        "negative": ["words", 0],
        "latent_image": ["draw", 0],
    }
    inputs |= {
        "seed": 0,
        "steps": 1,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    prompt["sample"] = {"class_type": "KSampler", "inputs": inputs}
    prompt["decode"]["inputs"] = {"samples": ["sample", 0], "vae": ["demo", 2]}
    result = infinity.queue(prompt)
    assert not result.ok
    assert "this LATENT is a picture of Infinity, which a diffusion model cannot sample" in str(
        result.error_message
    )
