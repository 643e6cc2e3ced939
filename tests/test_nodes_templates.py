"""Templates through the real nodes: what each side of CFG gets, what goes on to the sampler, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from kv_templates import dit_file, value_file
from safetensors.torch import save_file
from tiny_models import build, conditioning

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files.kinds import describe_tensors
from i2l.i2l_core.kv_caches.dit import DitTemplate
from i2l.i2l_core.predictors.template.run import PERMISSION

KLEIN = "Template-KleinBase4B-"
# Keys and values for the tiny FLUX.2 that depend on all that the program is given, and a diary of how often it ran.
KV = """
import pathlib
import torch
RUNS = pathlib.Path(__file__).with_name("runs")
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.empty(1))
    def process_inputs(self, NAMES, pipe=None, **kwargs):
        with RUNS.open("a") as file:
            file.write("x")
        FIRST
        return {"x": VALUE}
    def forward(self, x, pipe=None, **kwargs):
        gen = torch.Generator().manual_seed(3)
        blocks = {}
        for name in ("double_0", "single_0", "single_1"):
            one = torch.randn(1, 4, 2, 128, generator=gen)
            blocks[name] = (one + x, self.w * one.sin() * x)
        return {MORE "kv_cache": blocks}
TEMPLATE_MODEL = Net
TEMPLATE_MODEL_PATH = "model.safetensors"
"""


@pytest.fixture
def root(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return template_folders.allowed_templates(tmp_path, monkeypatch)


def kv_program(
    root: Path, name: str, names: str, value: str, more: str = "", first: str = "pass", w: float = 1.0
) -> Path:
    program = KV.replace("NAMES", names).replace("VALUE", value).replace("MORE", more).replace("FIRST", first)
    return template_folders.write(root / name, program, model={"w": torch.tensor([w])})


def load(name: str, allow_code: bool = True) -> Any:
    from i2l.nodes.template_load import LoadTemplate

    with torch.inference_mode():
        return LoadTemplate.execute(name, allow_code)[0]


def given(node: str, **inputs: Any) -> Any:
    import i2l.nodes as nodes

    with torch.inference_mode():
        return getattr(nodes, node).execute(**inputs)


def value(template: Any, number: float = 0.7) -> Any:
    return given("TemplateValue", template=template, scale={"scale": "0 to 1", "value": number})[0]


def apply(inputs: Any, latent: Any = None, seed: int = 0) -> Any:
    positive, negative = conditioning("flux2", seed), conditioning("flux2", seed + 1)
    return given("ApplyTemplate", positive=positive, negative=negative, inputs=inputs, latent=latent)


def shown(output: Any) -> list[str]:
    (text,) = output.ui.as_dict()["text"]
    return text.splitlines()


def made(inputs: Any) -> Any:
    return inputs.make(lambda done, of: None)


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text()) if (folder / "runs").exists() else 0


class Vae:
    """Patches of 16 pixels, as FLUX.2's, but for what they hold."""

    def spacial_compression_encode(self) -> int:
        return 16

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16)
        return patches.repeat(1, 43, 1, 1)[:, :128]


class Clip:
    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[Any]:
        return [[torch.full((1, 7, 48), float(len(tokens))), {}]]


PICTURE = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
MASK = (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(2)) > 0.5).float()


# both sides


def test_three_nodes_and_the_negative_side_has_the_neutral_value(root: Path):
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    inputs = value(load(f"{KLEIN}Brightness/"), 0.7)
    found = made(inputs)
    for cache, x in ((found.positive, 0.7), (found.negative, 0.5)):
        gen = torch.Generator().manual_seed(3)
        for block in ("double_0", "single_0", "single_1"):
            one = torch.randn(1, 4, 2, 128, generator=gen)
            k, v = cache.blocks[block]
            torch.testing.assert_close(k, one + x)
            torch.testing.assert_close(v, one.sin() * x)
    out = apply(inputs)
    assert shown(out)[0] == f"{KLEIN}Brightness: value 0.7, neutral 0.5"
    assert shown(out)[1].startswith("positive: 4 tokens")


def test_what_the_nodes_make_is_what_each_side_sees(root: Path):
    """A sampling with the nodes against the two sides run by hand, each alone with the cache of its side."""
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    model = build("flux2")
    template = load(f"{KLEIN}Brightness/")
    out = apply(value(template, 0.9))
    plain = conditioning("flux2", 0), conditioning("flux2", 1)
    assert not torch.equal(step(model, out[0], out[1], 4.0), step(model, *plain, 4.0))
    bright = step(model, out[0], plain[1], 1.0)
    neutral = step(model, out[1], plain[0], 1.0)
    both = step(model, out[0], out[1], 4.0)
    torch.testing.assert_close(both, neutral + 4.0 * (bright - neutral), rtol=1e-4, atol=1e-4)


def step(model: Any, positive: Any, negative: Any, cfg: float) -> torch.Tensor:
    """One step to sigma 0: what the guided model predicts."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 1)
    noise = torch.randn(1, 128, 4, 4, generator=torch.Generator().manual_seed(9))
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=1)


def test_a_template_that_takes_nothing_goes_straight_in_and_both_sides_share(root: Path):
    folder = kv_program(root, "meme", "", "1.0")
    program = (folder / "model.py").read_text().replace("(self, , pipe", "(self, pipe")
    (folder / "model.py").write_text(program)
    inputs = given("LoadTemplate", template_name="meme/", allow_code=True)[0]
    out = apply(inputs)
    assert shown(out)[0] == "meme: no inputs"
    assert runs(folder) == 1


def test_a_picture_stands_with_an_empty_prompt_against_it(root: Path):
    first = "text = pipe.units[0].process(pipe, prompt)['prompt_embeds']"
    number = "float(pipe.vae.encode(pipe.preprocess_image(image)).mean() + text.mean())"
    folder = kv_program(root, f"{KLEIN}ControlNet", "image, prompt", number, first=first)
    template = load(f"{KLEIN}ControlNet/")
    parts = {"template": template, "image": PICTURE, "vae": Vae(), "clip": Clip()}
    out = given("TemplatePicture", **parts, prompt="a cat")
    found = made(out[0])
    sides = [cache.blocks["double_0"][0] for cache in (found.positive, found.negative)]
    torch.testing.assert_close(sides[0] - sides[1], torch.full_like(sides[0], 5.0), rtol=0, atol=1e-4)
    assert shown(out) == [f"{KLEIN}ControlNet: picture of 64 x 64 and the prompt 'a cat'"]
    assert runs(folder) == 2


def test_a_colour_has_nothing_against_it(root: Path):
    kv_program(root, f"{KLEIN}SoftRGB", "R, G, B", "R + 2 * G + 4 * B")
    inputs = given("TemplateColour", template=load(f"{KLEIN}SoftRGB/"), red=255, green=0, blue=51)[0]
    found = made(inputs)
    assert found.negative is None
    one = torch.randn(1, 4, 2, 128, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found.positive.blocks["double_0"][0], one + 1.8)
    negative = conditioning("flux2", 1)
    out = given("ApplyTemplate", positive=conditioning("flux2", 0), negative=negative, inputs=inputs)
    assert out[1] is negative
    assert shown(out)[1].endswith("; negative: nothing")


def test_it_runs_once_for_any_number_of_prompts_and_again_after_an_error(root: Path):
    folder = kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    inputs = value(load(f"{KLEIN}Brightness/"))
    for seed in (0, 5):
        apply(inputs, seed=seed)
    assert runs(folder) == 2
    first = "if len(RUNS.read_text()) == 1: 1 / 0"
    folder = kv_program(root, f"{KLEIN}Sharpness", "scale", "scale", first=first)
    inputs = value(load(f"{KLEIN}Sharpness/"))
    with pytest.raises(
        I2LError, match=r"Sharpness: its model\.py failed in process_inputs: ZeroDivisionError"
    ):
        apply(inputs)
    apply(inputs)
    assert runs(folder) == 3


# the latent


def inpainting(root: Path, more: str, vae: Any = None) -> Any:
    names, first = "image, mask, force_inpaint=False", "self.image, self.mask = image, mask"
    kv_program(root, f"{KLEIN}Inpaint", names, "1.0 + force_inpaint", more, first)
    parts = {"template": load(f"{KLEIN}Inpaint/"), "image": PICTURE, "mask": MASK, "vae": vae or Vae()}
    return given("TemplateInpaint", **parts)[0]


def test_a_template_that_inpaints_gives_the_picture_with_its_mask(root: Path):
    inputs = inpainting(root, "'input_image': self.image, 'inpaint_mask': self.mask,")
    out = apply(inputs, latent={"samples": torch.zeros(1, 128, 2, 2), "more": 1})
    pixels = (PICTURE * 255).round() / 255
    torch.testing.assert_close(out[2]["samples"], Vae().encode(pixels))
    assert out[2].keys() == {"samples", "noise_mask"}
    small = made(inputs).mask.convert("RGB").resize((4, 4))
    expected = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, 4, 4, 3)[..., 0] / 255
    torch.testing.assert_close(out[2]["noise_mask"], expected[:, None])
    assert 0 < out[2]["noise_mask"].mean() < 1
    assert "inpaints: connect latent to the sampler" in shown(out)


def test_a_mask_alone_goes_onto_the_latent_that_comes_in(root: Path):
    inputs = inpainting(root, "'inpaint_mask': self.mask,")
    samples = torch.rand(1, 128, 8, 2)
    latent = {"samples": samples, "batch_index": [3]}
    out = apply(inputs, latent=latent)
    assert out[2]["samples"] is samples
    assert out[2]["batch_index"] == [3]
    assert out[2]["noise_mask"].shape == (1, 1, 8, 2)
    assert "noise_mask" not in latent
    with pytest.raises(I2LError, match="Inpaint gives a mask: connect the latent that it belongs to"):
        apply(inputs)


def test_without_inpainting_the_latent_passes_and_none_stops_what_needs_one(root: Path):
    from comfy_execution.graph_utils import ExecutionBlocker

    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    inputs = value(load(f"{KLEIN}Brightness/"))
    latent = {"samples": torch.zeros(1, 128, 4, 4)}
    assert apply(inputs, latent=latent)[2] is latent
    blocked = apply(inputs)[2]
    assert isinstance(blocked, ExecutionBlocker)
    assert "the latent output of Apply Template is for templates that inpaint" in str(blocked.message)


def test_a_picture_of_other_sides_than_the_vae_takes(root: Path):
    class Coarse(Vae):
        def spacial_compression_encode(self) -> int:
            return 128

    inputs = inpainting(root, "'input_image': self.image,", Coarse())
    with pytest.raises(
        I2LError, match="this VAE needs pictures whose sides are multiples of 128 pixels, got 64 x 64"
    ):
        apply(inputs)


# LoRAs


def test_a_template_that_gives_a_lora(root: Path):
    folder = template_folders.style(root / f"{KLEIN}Aesthetic")
    program = (folder / "model.py").read_text()
    program = program.replace(
        "process_inputs(self, image, **kwargs)", "process_inputs(self, lora_ids, **kwargs)"
    )
    start, end = program.index("        features = []"), program.index('        return {"features"')
    program = (
        program[:start] + "        features = [torch.ones(9) * one for one in lora_ids]\n" + program[end:]
    )
    (folder / "model.py").write_text(program)
    template = load(f"{KLEIN}Aesthetic/")
    inputs = given("TemplateSettings", template=template, positive='{"lora_ids": [1, 3]}', negative="")[0]
    out = given("TemplateToLoRA", inputs=inputs)
    assert out[0].lora.n_layers == 6
    assert out[1].lora is out[0].lora
    assert shown(out) == [f"{KLEIN}Aesthetic: settings lora_ids", "rank 3, 6 layers"]
    other = given(
        "TemplateSettings", template=template, positive='{"lora_ids": [1, 3]}', negative='{"lora_ids": [2]}'
    )
    found = given("TemplateToLoRA", inputs=other[0])
    down = [next(iter(lora.lora.layers.values())).down for lora in (found[0], found[1])]
    assert not torch.equal(*down)
    with pytest.raises(I2LError, match=r"Aesthetic gives a LoRA: use Template to LoRA"):
        apply(inputs)


def test_a_template_that_gives_none(root: Path):
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    with pytest.raises(I2LError, match=r"Brightness gives no LoRA: use Apply Template"):
        given("TemplateToLoRA", inputs=value(load(f"{KLEIN}Brightness/")))


def test_what_else_a_program_returns_is_named(root: Path):
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale", more="'text_embedding': x, ")
    out = apply(value(load(f"{KLEIN}Brightness/")))
    assert shown(out)[-1] == "not supported, left out: text_embedding"


# refused


def test_the_wrong_node_names_the_right_one(root: Path):
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    template = load(f"{KLEIN}Brightness/")
    with pytest.raises(I2LError, match="Brightness: it takes a value: use Template Value"):
        given("TemplateColour", template=template, red=1, green=2, blue=3)
    with pytest.raises(I2LError, match="Brightness: it takes a value: use Template Value"):
        apply(template)
    with pytest.raises(I2LError, match="value must be a number from 0 to 1, got 20"):
        given("TemplateValue", template=template, scale={"scale": "years", "value": 20.0})


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (None, "scale takes no cable; in an API prompt it must be"),
        ("0 to 1", "scale takes no cable"),
        ({"value": 0.7}, "scale takes no cable"),
    ],
)
def test_a_value_without_its_scale(root: Path, scale: Any, message: str):
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    template = load(f"{KLEIN}Brightness/")
    with pytest.raises(I2LError, match=message):
        given("TemplateValue", template=template, scale=scale)
    with pytest.raises(I2LError, match=r"this node has no input factor; in an API prompt .* scale\.value"):
        given("TemplateValue", template=template, scale={"scale": "0 to 1", "value": 0.7}, factor=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'a': 1}", 'positive: expected JSON such as {"scale": 0.7}, Expecting property name'),
        ("[1]", 'positive: expected names and values such as {"scale": 0.7}, got list'),
    ],
)
def test_settings_that_are_none(root: Path, text: str, message: str):
    kv_program(root, "mine", "a", "a")
    with pytest.raises(I2LError) as caught:
        given("TemplateSettings", template=load("mine/"), positive=text, negative="")
    assert str(caught.value).startswith(message)


def test_settings_with_a_picture_and_a_mask(root: Path):
    kv_program(root, "mine", "image, mask, a", "image.width + mask.getpixel((0, 0))[0] * 0 + a")
    parts = {"template": load("mine/"), "image": PICTURE, "mask": MASK, "negative": json.dumps({"a": 2})}
    found = made(given("TemplateSettings", **parts, positive='{"a": 1}')[0])
    one = torch.randn(1, 4, 2, 128, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found.positive.blocks["double_0"][0], one + 65)
    torch.testing.assert_close(found.negative.blocks["double_0"][0], one + 66)


def test_a_program_that_needs_what_is_not_connected(root: Path):
    kv_program(root, "mine", "a", "pipe.vae.encode(a)")
    inputs = given("TemplateSettings", template=load("mine/"), positive='{"a": 1}', negative="")[0]
    with pytest.raises(I2LError) as caught:
        apply(inputs)
    assert str(caught.value) == (
        "mine: its model.py failed in process_inputs: it asks for pipe.vae: it needs a VAE: connect a VAE to the node "
        "that gives its inputs"
    )


def test_a_hostile_program_does_not_run_unless_both_allow_it(root: Path, monkeypatch: pytest.MonkeyPatch):
    marker = root / "marker"
    template_folders.hostile(root / "bad", marker)
    with pytest.raises(I2LError, match="bad is a Diffusion Template: it brings a program"):
        load("bad/", allow_code=False)
    monkeypatch.delenv(PERMISSION)
    with pytest.raises(I2LError, match=PERMISSION):
        load("bad/")
    assert not marker.exists()


def test_a_predictor_belongs_elsewhere(root: Path):
    template_folders.style(root / "KleinBase4B-i2L-v2")
    with pytest.raises(I2LError, match="KleinBase4B-i2L-v2 is a predictor of LoRAs: use Load i2L Predictor"):
        load("KleinBase4B-i2L-v2/")


def test_a_template_that_is_no_predictor_belongs_here(root: Path):
    from i2l.nodes.load import LoadI2LPredictor

    kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    with pytest.raises(
        I2LError, match="Brightness is no predictor of LoRAs from pictures: use Load Template"
    ):
        LoadI2LPredictor.execute(f"{KLEIN}Brightness/")


SIZES = DitTemplate(hidden=64, head_dim=32, mlp=192, double=1, single=2, patch=64, text=128)


def test_weights_in_the_wrong_node_name_the_right_one(root: Path):
    from i2l.nodes.load import LoadI2LPredictor

    value_file(root / "value.safetensors")
    dit_file(root / "network.safetensors", SIZES)
    save_file({"positive.double_0.k": torch.zeros(1, 2, 3, 4)}, root / "cache.safetensors")
    for name in ("value", "network", "cache"):
        with pytest.raises(I2LError) as caught:
            LoadI2LPredictor.execute(f"{name}.safetensors")
        assert str(caught.value) == (
            f"{name}.safetensors: expected a predictor file, but it is a Diffusion Template; put it into models/i2l "
            "and use Load Template"
        )
    assert "models/diffusion_models" in describe_tensors(
        ["transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"],
        {},
    )


def test_weights_of_inpaint_without_its_program_are_not_guessed_at(root: Path):
    """They look like those of ControlNet, which is read from its weights alone."""
    for name in ("ControlNet", "Inpaint"):
        (root / f"{KLEIN}{name}").mkdir()
        dit_file(root / f"{KLEIN}{name}" / "model.safetensors", SIZES)
    load(f"{KLEIN}ControlNet/model.safetensors", allow_code=False)
    with pytest.raises(I2LError) as caught:
        load(f"{KLEIN}Inpaint/model.safetensors")
    assert str(caught.value) == (
        f"{KLEIN}Inpaint: its weights alone do not say all that it does; get all files of https://modelscope.cn/models/"
        f"DiffSynth-Studio/{KLEIN}Inpaint into models/i2l/{KLEIN}Inpaint, choose that folder and switch on allow_code"
    )


def test_only_what_is_listed_is_opened_and_changes_are_seen(root: Path):
    from i2l.nodes.template_load import LoadTemplate

    folder = kv_program(root, "mine", "a", "a")
    assert LoadTemplate.validate_inputs("mine/") is True
    assert "there is no predictor folder" in str(LoadTemplate.validate_inputs("../i2l/mine/"))
    before = LoadTemplate.fingerprint_inputs("mine/")
    (folder / "more").write_text("x")
    assert LoadTemplate.fingerprint_inputs("mine/") != before


# memory and interrupts


def test_an_interrupt_leaves_nothing_half_done(root: Path):
    import comfy.model_management

    folder = kv_program(root, f"{KLEIN}Brightness", "scale", "scale")
    inputs = value(load(f"{KLEIN}Brightness/"))
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        apply(inputs)
    assert runs(folder) == 0
    apply(inputs)
    assert runs(folder) == 2


def test_too_little_memory_is_one_sentence_and_nothing_stays_loaded(root: Path):
    import comfy.model_management

    first = "if len(RUNS.read_text()) == 2: raise torch.cuda.OutOfMemoryError('too big')"
    kv_program(root, f"{KLEIN}Brightness", "scale", "scale", first=first)
    inputs = value(load(f"{KLEIN}Brightness/"))
    (patcher,) = inputs.get_models()
    with pytest.raises(I2LError) as caught:
        apply(inputs)
    assert str(caught.value) == (
        f"{KLEIN}Brightness: there is not enough memory to run it; use a smaller picture, or close what else uses the "
        "GPU"
    )
    assert not any(loaded.model is patcher for loaded in comfy.model_management.current_loaded_models)
