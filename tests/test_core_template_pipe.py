"""What a template's program finds in place of DiffSynth's pipeline, and what is taken of what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from PIL import Image
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.base import Options
from i2l.i2l_core.predictors.plain_runtime import PlainRuntime
from i2l.i2l_core.predictors.template.outputs import Outputs
from i2l.i2l_core.predictors.template.pipe import Pipe
from i2l.i2l_core.predictors.template.predictor import TemplatePredictor, load_template_predictor
from i2l.i2l_core.predictors.template.read import read_template
from i2l.i2l_core.predictors.template.run import PERMISSION, LoadedTemplate, PipelineNeeded, load_template
from i2l.i2l_core.references import Reference

CPU = torch.device("cpu")
PROGRAM = """
import torch
class Net(torch.nn.Module):
    def process_inputs(self, pipe=None, **kwargs):
        INPUTS
    def forward(self, pipe=None, **kwargs):
        OUTPUTS
TEMPLATE_MODEL = Net
"""
LORA = "{'lora': {'x.lora_A.weight': torch.full((1, 2), VALUE), 'x.lora_B.weight': torch.ones(2, 1)}}"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PERMISSION, "1")


def load(folder: Path, inputs: str, outputs: str) -> LoadedTemplate:
    program = PROGRAM.replace("INPUTS", inputs).replace("OUTPUTS", outputs)
    template_folders.write(folder, program)
    return load_template(read_template(folder, [folder.parent]), torch.float32, True)


@dataclass
class AllowedRuntime(PlainRuntime):
    """Stands for the host, which runs programs."""

    roots: Sequence[Path] = ()

    def template_roots(self) -> Sequence[Path]:
        return self.roots


def predictor(folder: Path, inputs: str, outputs: str) -> TemplatePredictor:
    template_folders.write(folder, PROGRAM.replace("INPUTS", inputs).replace("OUTPUTS", outputs))
    runtime = AllowedRuntime(CPU, torch.float32, runs_programs=True, roots=[folder.parent])
    return load_template_predictor(folder, runtime, Options(allow_code=True))


def encode(pixels: Tensor) -> Tensor:
    """A VAE that says what it was given: the mean of each 16 x 16 patch, in 0 to 1."""
    return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16)


def encode_text(prompt: str) -> Tensor:
    return torch.arange(len(prompt) * 3.0).view(1, len(prompt), 3)


def pipe(dtype: torch.dtype = torch.float32, **given: Any) -> Pipe:
    return Pipe(CPU, dtype, **given)


# the stand-in


def test_a_picture_through_preprocess_and_vae_is_the_picture_itself():
    picture = Image.fromarray((torch.rand(32, 48, 3) * 255).to(torch.uint8).numpy())
    given = pipe(encode=encode)
    found = given.vae.encode(given.preprocess_image(picture), tiled=False)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, 32, 48, 3) / 255
    torch.testing.assert_close(found, encode(pixels), rtol=0, atol=1e-6)
    assert pipe(torch.bfloat16, encode=encode).vae.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.bfloat16


def test_the_unit_that_encodes_prompts_is_found_by_the_name_of_its_class():
    given = pipe(torch.bfloat16, encode_text=encode_text)
    names = [unit.__class__.__name__ for unit in given.units]
    assert names == ["Flux2Unit_Qwen3PromptEmbedder"]
    found = given.units[0].process(given, "a cat")
    assert found["prompt_embeds"].dtype == torch.bfloat16
    assert torch.equal(found["prompt_embeds"], encode_text("a cat").bfloat16())
    assert found["text_ids"].tolist() == [[[0, 0, 0, i] for i in range(5)]]
    assert given.units[0].process(given, prompt="")["text_ids"].shape == (1, 0, 4)


def test_parts_that_nobody_gave_are_not_there():
    bare, full = pipe(), pipe(encode=encode, encode_text=encode_text)
    assert (hasattr(bare, "vae"), hasattr(bare, "units"), hasattr(bare, "dit")) == (False, False, False)
    assert (hasattr(full, "vae"), hasattr(full, "units"), hasattr(full, "dit")) == (True, True, False)
    assert bare.device == CPU
    assert bare.load_models_to_device(["vae"]) is None


@pytest.mark.parametrize(
    ("asked", "message", "socket"),
    [
        ("pipe.vae.encode(1)", "it asks for pipe.vae: it needs a VAE", "VAE"),
        ("[unit for unit in pipe.units]", "it asks for pipe.units: it needs a CLIP", "CLIP"),
        ("pipe.tokenizer('a')", "it asks for pipe.tokenizer: it needs a CLIP", "CLIP"),
        ("pipe.dit(1)", "it asks for pipe.dit: only DiffSynth's own pipeline has that", ""),
    ],
)
def test_what_a_program_asks_for_in_vain_is_said(tmp_path: Path, asked: str, message: str, socket: str):
    loaded = load(tmp_path / "t", f"return {{'x': {asked}}}", "return {}")
    with pytest.raises(PipelineNeeded) as caught:
        loaded.run({}, pipe())
    assert str(caught.value) == f"t: its model.py failed in process_inputs: {message}"
    assert caught.value.socket == socket


def test_a_text_encoder_that_is_given_does_not_bring_a_tokenizer(tmp_path: Path):
    loaded = load(tmp_path / "t", "return {'x': pipe.tokenizer('a')}", "return {}")
    with pytest.raises(PipelineNeeded, match="only DiffSynth's own pipeline has that") as caught:
        loaded.run({}, pipe(encode_text=encode_text))
    assert caught.value.socket == ""


# predictors: pictures in, a LoRA out


@pytest.mark.parametrize(
    ("inputs", "value"),
    [
        ("return {'v': 1.0 if pipe is None else 2.0}", 2.0),  # as DiffSynth, which always passes one
        (
            "return {'v': 3.0 if pipe.device.type == 'cpu' and pipe.torch_dtype == torch.float32 else 0.0}",
            3.0,
        ),
        ("return {'v': 1.0 if pipe is None else float(pipe.dit.width)}", 1.0),  # without it as before
        ("return {'v': float(pipe.preprocess_image(kwargs['image'][0]).mean())}", 1.0),
    ],
    ids=["any", "device", "more than there is", "picture"],
)
def test_predictors_get_the_stand_in_and_nothing_where_it_lacks_a_part(
    tmp_path: Path, inputs: str, value: float
):
    made = predictor(tmp_path / "t", inputs, "return " + LORA.replace("VALUE", "kwargs['v']"))
    found = made.predict([Reference(torch.ones(20, 30, 3))])
    (layer,) = found.lora.layers.values()
    assert layer.down.tolist() == [[value, value]]


def test_a_predictor_that_needs_a_vae_says_where_it_gets_one(tmp_path: Path):
    made = predictor(tmp_path / "t", "return {'x': pipe.vae.encode(1)}", "return {}")
    with pytest.raises(I2LError) as caught:
        made.predict([Reference(torch.ones(20, 30, 3))])
    assert str(caught.value) == (
        "t: its model.py failed in process_inputs: it asks for pipe.vae: it needs a VAE; load it with Load Template, "
        "whose inputs take a VAE"
    )


def test_the_published_template_of_one_picture(tmp_path: Path):
    """ContentRef takes a picture, not a list of them, and a gray square of 1024 pixels stands against it."""
    inputs = "image = kwargs['image']; return {'v': image.width + image.getpixel((0, 0))[0] / 1000}"
    made = predictor(
        tmp_path / "Template-KleinBase4B-ContentRef", inputs, "return " + LORA.replace("VALUE", "kwargs['v']")
    )
    found = made.predict([Reference(torch.ones(20, 30, 3))])
    values = [next(iter(lora.layers.values())).down[0, 0].item() for lora in (found.lora, found.neutral)]
    assert values == pytest.approx([30.255, 1024.128], abs=1e-3)
    for many in ([Reference(torch.ones(8, 8, 3))] * 2, [Reference(torch.ones(8, 8, 3), 2)]):
        with pytest.raises(
            I2LError, match="ContentRef takes one picture, got 2: connect a single one with weight 1"
        ):
            made.predict(many)


# outputs


def test_every_output_is_taken(tmp_path: Path):
    outputs = (
        "return {'lora': None, 'kv_cache': {'double_0': [self.k, self.k + 1]}, 'input_image': kwargs['image'], "
        "'inpaint_mask': kwargs['mask'], 'denoising_strength': 0.5, 'text_embedding': None}"
    )
    loaded = load(tmp_path / "t", "self.k = torch.zeros(1, 2, 3, 4); return kwargs", outputs)
    image, mask = Image.new("RGB", (4, 2), (1, 2, 3)), Image.new("L", (4, 2), 255)
    found = loaded.run({"image": image, "mask": mask})
    loaded.model.k.fill_(9)
    assert found.kv_cache is not None
    k, v = found.kv_cache["double_0"]
    assert (k.unique().tolist(), v.unique().tolist()) == ([0], [1])
    assert found.input_image is not None
    assert found.inpaint_mask is not None
    assert found.input_image.tobytes() == image.tobytes()
    assert found.inpaint_mask.tobytes() == mask.tobytes()
    assert (found.lora, found.others) == (None, ("denoising_strength",))


def test_inputs_arrive_by_their_names(tmp_path: Path):
    loaded = load(
        tmp_path / "t",
        "return {'seen': kwargs}",
        "return {str(sorted((k, v) for k, v in kwargs['seen'].items())): 1}",
    )
    found = loaded.run({"scale": 0.7, "prompt": "a cat", "lora_ids": [1, 3], "R": 0.5})
    assert found.others == ("[('R', 0.5), ('lora_ids', [1, 3]), ('prompt', 'a cat'), ('scale', 0.7)]",)


def test_a_lora_beside_other_outputs():
    lora = {"x": torch.ones(1)}
    picture = Image.new("L", (1, 1))
    assert Outputs(lora, {}, picture, None, ("a",)).only_lora("t") == (lora, ("a", "input_image", "kv_cache"))
    with pytest.raises(I2LError, match=r"t: expected .* a lora, it returned only a, inpaint_mask$"):
        Outputs(inpaint_mask=picture, others=("a",)).only_lora("t")
