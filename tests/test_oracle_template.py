"""Diffusion Templates against DiffSynth-Studio's own TemplatePipeline (PyPI: diffsynth): the same LoRA on the CPU.

The folders are written here, as its documentation describes them; no weights of others are at hand.
"""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from PIL import Image

from i2l.i2l_core.predictors.template.pictures import grays_like, pictures_of
from i2l.i2l_core.predictors.template.pipe import Pipe
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


# A network that takes all of DiffSynth's pipeline that templates take, as those of FLUX.2 do: the VAE, the prompt's
# text states and where the tokens are.
WITH_PIPE = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(6, 8)
    @torch.no_grad()
    def process_inputs(self, image, mask=None, prompt="", scale=1.0, pipe=None, **kwargs):
        pipe.load_models_to_device(["vae", "text_encoder_qwen3"])
        latent = pipe.vae.encode(pipe.preprocess_image(image))
        shown = pipe.preprocess_image(mask.convert("RGB"), pattern="C H W", min_value=0) if mask else 1
        for unit in pipe.units:
            if unit.__class__.__name__ == "Flux2Unit_Qwen3PromptEmbedder":
                text = unit.process(pipe, prompt=prompt)
        x = latent.flatten(2).transpose(1, 2).to(device=pipe.device, dtype=pipe.torch_dtype)
        return {"x": x, "scale": scale, "image": image, "mask": mask, "shown": shown, **text}
    def forward(self, x, prompt_embeds, text_ids, scale, image, mask, shown, pipe=None, **kwargs):
        scale = scale * (shown.mean() if mask else 1)
        tokens = torch.cat([x, prompt_embeds, text_ids.to(x)[..., 1:]], 1)
        k = self.mix(torch.cat([tokens, tokens.sin()], -1))[:, :, None] * scale
        return {"kv_cache": {"double_0": (k, k.cos()), "single_1": (k.flip(-1), k)}, "input_image": image,
                "inpaint_mask": mask, "denoising_strength": 0.9}
TEMPLATE_MODEL = Net
TEMPLATE_MODEL_PATH = "model.safetensors"
TEMPLATE_MODEL_CONFIG = {}
"""


class TheirVae(torch.nn.Module):
    """In the place of Flux2VAE: pictures from -1 to 1, 16 x 16 patches."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d((x.float() + 1) / 2, 16).to(x.dtype)


class TheirText:
    """In the place of the tokenizer and of Qwen3: the lengths that DiffSynth pads to, and three layers of it."""

    dtype, device = torch.float32, "cpu"
    layer = [torch.linspace(-1, 1, 512)[None, :, None] * i for i in range(28)]

    def apply_chat_template(self, messages, **_):
        return messages[0]["content"]

    def __call__(self, text: str = "", input_ids: torch.Tensor | None = None, **kwargs):
        if input_ids is None:
            ids = torch.zeros(1, 512, dtype=torch.int64)
            ids[0, : len(text)] = torch.tensor([ord(letter) for letter in text])
            return {"input_ids": ids, "attention_mask": ids != 0}
        return types.SimpleNamespace(hidden_states=[one * input_ids[..., None].cos() for one in self.layer])


@pytest.mark.parametrize("prompt", ["a cat on a stone", ""])
@pytest.mark.parametrize("mask", [False, True])
def test_a_program_that_needs_the_pipeline(diffsynth, tmp_path: Path, prompt: str, mask: bool):
    """DiffSynth's own pipeline class, with a VAE and a text encoder of the tests' in it, against the stand-in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flux2 = pytest.importorskip("diffsynth.pipelines.flux2_image")
    from diffsynth.core import ModelConfig

    folder = tmp_path / "t"
    torch.manual_seed(5)
    weights = {"mix.weight": torch.randn(8, 6), "mix.bias": torch.randn(8)}
    template_folders.write(folder, WITH_PIPE, model=weights)
    pipe = flux2.Flux2ImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.vae, pipe.text_encoder_qwen3, pipe.tokenizer = TheirVae(), TheirText(), TheirText()
    (picture,) = pictures_of([Reference(torch.rand(32, 48, 3))])
    inputs = {"image": picture, "prompt": prompt, "scale": 0.7}
    if mask:
        inputs["mask"] = picture.convert("L")
    with torch.no_grad():
        pipeline = diffsynth.TemplatePipeline(torch.float32, "cpu", [ModelConfig(path=str(folder))])
        expected = pipeline.call_single_side(pipe, [inputs])

    ours = Pipe(
        torch.device("cpu"),
        torch.float32,
        lambda pixels: torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16),
        lambda text: pipe.units[2].process(pipe, text)["prompt_embeds"],
    )
    found = load_template(read_template(folder, [tmp_path]), torch.float32, True).run(inputs, ours)
    assert found.kv_cache is not None
    assert found.kv_cache.keys() == expected["kv_cache"].keys()
    for block, pair in found.kv_cache.items():
        for one, theirs_ in zip(pair, expected["kv_cache"][block], strict=True):
            assert one.shape == (1, 6 + 2 * 512, 1, 8)
            torch.testing.assert_close(one, theirs_, rtol=0, atol=2e-6)
    assert found.input_image is not None
    assert found.input_image.tobytes() == expected["input_image"].tobytes()
    assert (found.inpaint_mask is not None) is mask
    assert (found.lora, found.others) == (None, ("denoising_strength",))


@pytest.mark.parametrize("pattern", ["B C H W", "H W C", "C H W", "B H W C"])
def test_a_picture_becomes_the_same_numbers(diffsynth, pattern: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flux2 = pytest.importorskip("diffsynth.pipelines.flux2_image")
    (picture,) = pictures_of([Reference(torch.rand(5, 7, 3))])
    for dtype in (torch.float32, torch.bfloat16):
        theirs_ = flux2.Flux2ImagePipeline(device="cpu", torch_dtype=dtype)
        settings: list[dict[str, Any]] = [
            {},
            {"min_value": 0},
            {"torch_dtype": torch.float16, "max_value": 2},
        ]
        for range_ in settings:
            ours = Pipe(torch.device("cpu"), dtype).preprocess_image(picture, pattern=pattern, **range_)
            assert torch.equal(ours, theirs_.preprocess_image(picture, pattern=pattern, **range_))


def test_other_pictures_give_another_lora(tmp_path: Path):
    """The comparisons above compare something."""
    folder = template_folders.style(tmp_path / "t")
    one, two = pictures_of(references(2))
    first, _ = ours(folder, torch.float32, [one])
    second, _ = ours(folder, torch.float32, [two])
    assert not any(torch.equal(tensor, second[name]) for name, tensor in first.items())
