"""Diffusion Templates against DiffSynth-Studio's own TemplatePipeline (PyPI: diffsynth): the same LoRA on the CPU.

The folders are written here, as its documentation describes them; no weights of others are at hand.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from PIL import Image

from i2l.i2l_core.predictors.template.pictures import grays_like, pictures_of
from i2l.i2l_core.predictors.template.read import read_template
from i2l.i2l_core.predictors.template.run import PERMISSION, load_template
from i2l.i2l_core.references import Reference

SIZES = ((48, 40), (33, 64), (96, 17), (20, 20), (64, 64))


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PERMISSION, "1")


@pytest.fixture(scope="module")
def diffsynth() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffsynth.diffusion.template")


def references(count: int) -> list[Reference]:
    return [Reference(torch.rand(height, width, 3)) for width, height in SIZES[:count]]


def theirs(diffsynth, folders: list[Path], dtype: torch.dtype, inputs: list[dict]) -> dict[str, Any]:
    from diffsynth.core import ModelConfig

    configs = [ModelConfig(path=str(folder)) for folder in folders]
    pipeline = diffsynth.TemplatePipeline(dtype, "cpu", configs)
    with torch.no_grad():  # as its __call__ does
        return pipeline.call_single_side(None, inputs)


def ours(folder: Path, dtype: torch.dtype, pictures: list[Image.Image]):
    return load_template(read_template(folder, [folder.parent]), dtype, True).predict(pictures)


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_lora(diffsynth, tmp_path: Path, dtype: torch.dtype, count: int, seed: int):
    folder = template_folders.style(tmp_path / "t", seed=seed)
    pictures = pictures_of(references(count))
    expected = theirs(diffsynth, [folder], dtype, [{"image": pictures}])
    found, others = ours(folder, dtype, pictures)
    equal(found, expected["lora"])
    assert others == ()
    assert all(tensor.abs().max() > 0 for tensor in found.values())


def test_the_same_lora_of_gray_pictures(diffsynth, tmp_path: Path):
    folder = template_folders.style(tmp_path / "t")
    pictures = pictures_of(references(3))
    grays = [Image.new("RGB", picture.size, (128, 128, 128)) for picture in pictures]
    expected = theirs(diffsynth, [folder], torch.float32, [{"image": grays}])
    equal(ours(folder, torch.float32, grays_like(pictures))[0], expected["lora"])


def test_the_same_lora_without_weights(diffsynth, tmp_path: Path):
    """Both start from torch's generator; ours seeds it, with what this test gives theirs."""
    folder = template_folders.style(tmp_path / "t", weights=False)
    pictures = pictures_of(references(2))
    torch.manual_seed(0)
    expected = theirs(diffsynth, [folder], torch.bfloat16, [{"image": pictures}])
    equal(ours(folder, torch.bfloat16, pictures)[0], expected["lora"])


def test_other_outputs_are_named_and_the_lora_is_the_same(diffsynth, tmp_path: Path):
    folder = template_folders.style(
        tmp_path / "t", more=template_folders.KV_CACHE + ', "text_embedding": features'
    )
    pictures = pictures_of(references(2))
    expected = theirs(diffsynth, [folder], torch.float32, [{"image": pictures}])
    found, others = ours(folder, torch.float32, pictures)
    assert set(expected) == {"lora", *others} == {"lora", "kv_cache", "text_embedding"}
    equal(found, expected["lora"])


def test_several_templates_are_the_sum_of_ours(diffsynth, tmp_path: Path):
    """Theirs concatenates ranks; here each template is a predictor, and LoRAs add up where they are applied."""
    folders = [template_folders.style(tmp_path / f"t{seed}", seed=seed) for seed in (0, 1, 2)]
    pictures = pictures_of(references(2))
    inputs = [{"model_id": i, "image": pictures} for i in range(3)]
    expected = theirs(diffsynth, folders, torch.float32, inputs)["lora"]
    parts = [ours(folder, torch.float32, pictures)[0] for folder in folders]
    for down in [name for name in expected if ".lora_A." in name]:
        up = down.replace(".lora_A.", ".lora_B.")
        assert expected[down].shape[0] == 9
        total = sum(part[up] @ part[down] for part in parts)
        torch.testing.assert_close(expected[up] @ expected[down], total, rtol=1e-5, atol=1e-5)


def test_a_weight_is_the_picture_given_so_often(diffsynth, tmp_path: Path):
    folder = template_folders.style(tmp_path / "t")
    one, two, three = references(3)
    weighted = [Reference(one.pixels, 2), Reference(two.pixels, 0), three]
    a, _, c = pictures_of([one, two, three])
    expected = theirs(diffsynth, [folder], torch.float32, [{"image": [a, a, c]}])
    equal(ours(folder, torch.float32, pictures_of(weighted))[0], expected["lora"])


def test_what_theirs_refuses_ours_refuses(diffsynth, tmp_path: Path):
    from i2l.i2l_core.errors import I2LError

    program = (
        "import torch\nclass Net(torch.nn.Module):\n    def process_inputs(self, image{}):\n        return {{}}\n"
        "    def forward(self{}):\n        return {{}}\nTEMPLATE_MODEL = Net"
    )
    for name, parts in (("a", ("", ", **kwargs")), ("b", (", **kwargs", ""))):
        folder = template_folders.write(tmp_path / name, program.format(*parts))
        with pytest.raises(NotImplementedError):
            theirs(diffsynth, [folder], torch.float32, [{"image": []}])
        with pytest.raises(I2LError, match=r"does not accept \*\*kwargs"):
            ours(folder, torch.float32, [])


def test_other_pictures_give_another_lora(tmp_path: Path):
    """The comparisons above compare something."""
    folder = template_folders.style(tmp_path / "t")
    one, two = pictures_of(references(2))
    first, _ = ours(folder, torch.float32, [one])
    second, _ = ours(folder, torch.float32, [two])
    assert not any(torch.equal(tensor, second[name]) for name, tensor in first.items())
