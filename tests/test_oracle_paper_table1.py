"""bench.paper_table1 against diffsynth's metrics: the same CLIP scores, and its own metrics behind our names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import SIDE, WIDTH, save_clip, tiny_clip, tiny_processor

from i2l.bench.paper_table1.clip import Clip, ClipJudge
from i2l.bench.paper_table1.published import INSTALL, PublishedJudge, load_published
from i2l.bench.paper_table1.rows import Sample, Style
from i2l.i2l_core.errors import I2LError

pytestmark = pytest.mark.evidence

SAMPLE = Sample("a", "a cat", Style("ink", "bold ink", ()))
CPU = torch.device("cpu")


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (SIDE, 2 * SIDE, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_clip_scores_are_those_of_diffsynth(tmp_path: Path, picture: Image.Image) -> None:
    from diffsynth.models.clip import CLIPModel
    from diffsynth.models.pickscore import PickScoreModel

    model, processor = save_clip(tmp_path), tiny_processor(tmp_path)
    judge = ClipJudge(Clip(tmp_path, CPU), ("clip_text", "clip_style", "pickscore"))
    theirs = CLIPModel(model, processor)
    assert judge(picture, SAMPLE) == pytest.approx(
        {
            "clip_text": float(theirs("a cat", picture)),
            "clip_style": float(theirs("bold ink", picture)),
            "pickscore": float(PickScoreModel(model, processor)("a cat", picture)),
        },
        abs=1e-4,
    )


def test_hpsv2_has_gelu(tmp_path: Path, picture: Image.Image) -> None:
    """diffsynth builds it with QuickGELU; the published weights are of a CLIP with GELU."""
    from diffsynth.metrics import HPSv2Metric
    from diffsynth.models.hpsv2 import HPSv2Model

    save_clip(tmp_path, "gelu")
    exact = ClipJudge(Clip(tmp_path, CPU), ("clip_text",))(picture, SAMPLE)["clip_text"]
    metric = HPSv2Metric(HPSv2Model(tiny_clip("quick_gelu"), tiny_processor(tmp_path)))
    assert metric.compute("a cat", picture)[0] != pytest.approx(exact, abs=1e-3)
    assert PublishedJudge("hpsv2", metric)(picture, SAMPLE) == pytest.approx({"hpsv2": exact}, abs=1e-4)


def test_aesthetic_reads_no_prompt(tmp_path: Path, picture: Image.Image) -> None:
    from diffsynth.metrics import AestheticMetric
    from diffsynth.models.aesthetic import AestheticMLP, AestheticModel
    from transformers import CLIPVisionModel

    clip = tiny_clip()
    vision = CLIPVisionModel(clip.config.vision_config).eval()
    processor = tiny_processor(tmp_path).image_processor
    model = AestheticModel(AestheticMLP(WIDTH), vision, clip.visual_projection, processor)
    judge = PublishedJudge("aesthetic", AestheticMetric(model.eval()))
    with torch.no_grad():
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        seen = clip.visual_projection(vision(pixel_values=pixels).pooler_output)
        expected = model.layers(torch.nn.functional.normalize(seen))
    assert judge(picture, SAMPLE) == pytest.approx({"aesthetic": float(expected)}, abs=1e-5)


@pytest.mark.parametrize("figure", ["aesthetic", "image_reward", "hpsv2", "hpsv3"])
def test_refuses_weights_of_another_architecture(tmp_path: Path, figure: str) -> None:
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(I2LError) as caught:
        load_published(figure, tmp_path, CPU)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: diffsynth does not take it as {figure}, so its weights")
    assert "Cannot detect the model type" in message
    assert "\n" not in message


def test_names_the_command_that_installs_diffsynth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None  # what Python understands as "cannot be imported"
    monkeypatch.setitem(sys.modules, "diffsynth.metrics", missing)
    with pytest.raises(I2LError, match=INSTALL):
        load_published("aesthetic", tmp_path, CPU)
