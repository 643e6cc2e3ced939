"""Asymmetric guidance on the real server: a picture, and a clean model after whatever happens."""

from __future__ import annotations

import pytest
import torch
from server_graphs import Prompt, both_loras, cancelled_at, changed, extended, find, guided, pixels

from i2l.tools.comfy_client import ComfyClient

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def asymmetric(prompt: Prompt) -> Prompt:
    """The first workflow with AsymmetricCFG in place of Apply Predicted LoRA."""
    predict, demo = find(prompt, "ImagesToLoRA"), find(prompt, "LoadI2LDemo")
    sides = ("AsymmetricCFG", both_loras(predict, demo, start_percent=0.0, end_percent=1.0))
    return extended(changed(prompt, "KSampler", model=["sides", 0]), sides=sides)


@pytest.fixture(scope="module")
def plain(server: ComfyClient, prompt: Prompt) -> torch.Tensor:
    return _plain(server, prompt)


def _plain(server: ComfyClient, prompt: Prompt) -> torch.Tensor:
    graph = changed(prompt, "KSampler", model=[find(prompt, "LoadI2LDemo"), 0])
    return pixels(server, server.queue(graph))


def test_ksampler_and_guider_give_one_picture(server: ComfyClient, prompt: Prompt, asymmetric: Prompt):
    first = server.queue(asymmetric)
    picture = pixels(server, first)
    assert "positive: " in first.outputs["sides"]["text"][0]

    cfg = prompt[find(prompt, "KSampler")]["inputs"]["cfg"]
    graph = guided(prompt, cfg)
    assert (pixels(server, server.queue(graph)) - picture).abs().max() <= 1


def test_an_interrupt_leaves_the_model_clean(
    server: ComfyClient,
    prompt: Prompt,
    asymmetric: Prompt,
    plain: torch.Tensor,
):
    before = pixels(server, server.queue(asymmetric))
    long = changed(asymmetric, "KSampler", steps=2000, seed=5)
    assert cancelled_at(server, long, find(prompt, "KSampler")).status == "interrupted"
    other = server.queue(
        changed(prompt, "KSampler", model=[find(prompt, "LoadI2LDemo"), 0], seed=8)
    )  # drops the cache
    assert other.ok, other.error_message
    assert torch.equal(_plain(server, prompt), plain)
    assert torch.equal(pixels(server, server.queue(asymmetric)), before)


def test_bad_numbers_are_one_line_on_the_node(server: ComfyClient, asymmetric: Prompt):
    wrong = changed(asymmetric, "AsymmetricCFG", start_percent=0.9, end_percent=0.1)
    result = server.queue(wrong)
    assert not result.ok
    assert "start (0.9) is after end (0.1)" in str(result.error_message)
