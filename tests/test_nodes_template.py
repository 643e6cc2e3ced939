"""Diffusion Templates through the real nodes: listed, refused unless allowed, predicted, applied."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from tiny_world import random_demo_weights, save_random_predictor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.template.pictures import MAX_WEIGHT, grays_like, pictures_of
from i2l.i2l_core.predictors.template.read import read_template
from i2l.i2l_core.predictors.template.run import PERMISSION, load_template
from i2l.i2l_core.references import Reference, references_from


@pytest.fixture
def root(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return template_folders.allowed_templates(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def model(host, tmp_path_factory: pytest.TempPathFactory):
    from i2l.i2l_core.host.demo.world import load_model

    return load_model(random_demo_weights(tmp_path_factory.mktemp("weights")))


def options() -> list[str]:
    from i2l.nodes.load import LoadI2LPredictor

    combo: Any = LoadI2LPredictor.define_schema().inputs[0]
    return combo.options


def load(name: str, allow_code: bool = True):
    from i2l.nodes.load import LoadI2LPredictor

    with torch.inference_mode():
        return LoadI2LPredictor.execute(name, allow_code)


def predict(predictor, images: dict[str, Any]):
    from i2l.nodes.predict import ImagesToLoRA

    with torch.inference_mode():
        return ImagesToLoRA.execute(predictor, images)


def shown(output) -> str:
    (text,) = output.ui.as_dict()["text"]
    return text


def images(*sizes: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {f"image{i}": (torch.rand(1, *size, 3) * 255).round() / 255 for i, size in enumerate(sizes)}


# listing


def test_files_and_folders_are_listed_alike(root: Path):
    save_random_predictor(root / "tiny.safetensors")
    template_folders.style(root / "ink")
    template_folders.style(root / "DiffSynth-Studio" / "oil")
    template_folders.style(root / "ink" / "older")  # belongs to ink
    (root / "files").mkdir()
    save_random_predictor(root / "files" / "other.safetensors")
    (root / "model.py").write_text("TEMPLATE_MODEL = 1")  # models/i2l itself is no template
    assert options() == sorted(
        ["DiffSynth-Studio/oil/", "ink/", os.path.join("files", "other.safetensors"), "tiny.safetensors"]
    )


@pytest.mark.parametrize(
    "name",
    ["gone/", "../i2l/ink/", "/etc/", "ink", "ink/older/", "ink/model.safetensors", "ink/model.py", "./ink/"],
)
def test_only_what_is_listed_is_opened(root: Path, name: str):
    from i2l.nodes.load import LoadI2LPredictor

    template_folders.style(root / "ink" / "older")
    template_folders.style(root / "ink")
    assert LoadI2LPredictor.validate_inputs("ink/") is True
    assert "there is no predictor f" in str(LoadI2LPredictor.validate_inputs(name))
    with pytest.raises(I2LError, match="there is no predictor f"):
        load(name)


def test_a_folder_without_a_program_is_not_offered(root: Path):
    from i2l.nodes.load import LoadI2LPredictor

    template_folders.style(root / "ink")
    (root / "ZImage-i2L-v2").mkdir()
    assert options() == ["ink/"]
    assert str(LoadI2LPredictor.validate_inputs("ZImage-i2L-v2/")).startswith(
        "there is no predictor folder 'ZImage-i2L-v2/' with a model.py in "
    )


def test_any_change_in_the_folder_is_seen(root: Path):
    from i2l.nodes.load import LoadI2LPredictor

    folder = template_folders.style(root / "ink")
    seen = [LoadI2LPredictor.fingerprint_inputs("ink/")]
    assert LoadI2LPredictor.fingerprint_inputs("ink/", True) == seen[0]
    os.utime(folder / "model.py", (1, 1))
    seen.append(LoadI2LPredictor.fingerprint_inputs("ink/"))
    (folder / "words.txt").write_text("new")
    seen.append(LoadI2LPredictor.fingerprint_inputs("ink/"))
    (folder / "words.txt").rename(folder / "names.txt")
    seen.append(LoadI2LPredictor.fingerprint_inputs("ink/"))
    assert len(set(seen)) == 4


def test_a_link_out_of_the_folders_is_listed_and_refused(root: Path, tmp_path: Path):
    marker = tmp_path / "marker"
    outside = template_folders.hostile(tmp_path / "outside", marker)
    (root / "linked").symlink_to(outside, target_is_directory=True)
    assert options() == ["linked/"]
    with pytest.raises(
        I2LError, match=r"linked is a link to .*outside, outside of the folders for predictors"
    ):
        load("linked/")
    assert not marker.exists()


# permission


@pytest.mark.parametrize(
    ("server", "allow_code"),
    [(False, False), (False, True), (True, False)],
    ids=["neither", "user", "server"],
)
def test_a_hostile_program_does_not_run_unless_both_allow_it(
    root: Path, monkeypatch, server: bool, allow_code: bool
):
    from i2l.nodes.load import LoadI2LPredictor

    if not server:
        monkeypatch.delenv(PERMISSION)
    marker = root / "marker"
    template_folders.hostile(root / "bad", marker)
    modules = set(sys.modules)
    options()
    assert LoadI2LPredictor.validate_inputs("bad/") is True
    LoadI2LPredictor.fingerprint_inputs("bad/", allow_code)
    with pytest.raises(
        I2LError, match=r"bad is a Diffusion Template: it brings a program, model\.py, which could"
    ) as e:
        load("bad/", allow_code)
    assert (PERMISSION in str(e.value)) is not server
    assert ("switch on allow_code" in str(e.value)) is not allow_code
    assert not marker.exists()
    assert not [name for name in set(sys.modules) - modules if "template" in name]


def test_off_is_the_default():
    import inspect

    from i2l.i2l_core.host.predictors.runtime import load_predictor
    from i2l.nodes.load import LoadI2LPredictor

    switch: Any = LoadI2LPredictor.define_schema().inputs[1]
    assert (switch.id, switch.default, switch.optional) == ("allow_code", False, True)
    for function in (LoadI2LPredictor.execute, load_predictor):
        assert inspect.signature(function).parameters["allow_code"].default is False


def test_it_does_run_when_both_allow_it(root: Path):
    """The test of the test above."""
    marker = root / "marker"
    template_folders.hostile(root / "bad", marker)
    with pytest.raises(I2LError, match="did not set TEMPLATE_MODEL"):
        load("bad/")
    assert marker.exists()


# predicting


def test_the_node_gives_what_the_program_gives(root: Path):
    folder = template_folders.style(root / "ink")
    pictures = images((40, 48), (64, 33))
    out = predict(load("ink/")[0], pictures)
    plain = load_template(read_template(folder, [root]), torch.float32, True)
    used = pictures_of(references_from(pictures))
    for found, given in ((out[0].lora, used), (out[1].lora, grays_like(used))):
        expected, _ = plain.predict(given)
        assert found.n_layers == len(expected) // 2 == 6
        tensors = {f"{name}.lora_{part}" for name in _names(expected) for part in "AB"}
        assert len(tensors) == len(expected)
        for target, layer in found.layers.items():
            name = _their_name(target)
            assert torch.equal(layer.down, expected[f"{name}.lora_A.default.weight"])
            assert torch.equal(layer.up, expected[f"{name}.lora_B.default.weight"])
    assert shown(out) == "2 references, rank 3, 6 layers"


def _names(tensors) -> set[str]:
    return {name.rpartition(".lora_")[0] for name in tensors}


def _their_name(target) -> str:
    if target.rows is not None:
        return target.weight.replace("qkv", {0: "to_q", 256: "to_k", 512: "to_v"}[target.rows[0]])
    return target.weight.replace("attention.out", "attention.to_out.0")


def test_it_lands_on_the_base_model_that_its_names_say(root: Path, model):
    from i2l.i2l_core.host.patch import fitting
    from i2l.nodes.apply import ApplyPredictedLoRA

    template_folders.style(root / "ink")
    out = predict(load("ink/")[0], images((40, 48)))
    assert (out[0].lora.base_model, out[0].lora.predictor) == ("i2l-tiny", "ink")
    assert fitting(out[0].lora, model).missing == ()
    styled = ApplyPredictedLoRA.execute(model, out[0], 1.0)[0]
    assert len(styled.patches) == 6 - 2  # q and v of one weight twice
    target = next(target for target in out[0].lora.layers if target.rows == (512, 256))
    assert target.weight == "layers.0.attention.qkv"


def test_predictors_for_two_base_models_do_not_mix(root: Path, model):
    from i2l.nodes.apply import ApplyPredictedLoRA

    template_folders.style(root / "ink")
    klein = "transformer_blocks.0.attn.to_q"
    template_folders.write(
        root / "klein",
        "import torch\nclass Net(torch.nn.Module):\n    def process_inputs(self, image, **kwargs): return {}\n"
        f"    def forward(self, **kwargs):\n        return {{'lora': {{'{klein}.lora_A.default.weight': "
        f"torch.ones(2, 3072), '{klein}.lora_B.default.weight': torch.ones(3072, 2),\n"
        "            'single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.default.weight': torch.ones(2, 3072),\n"
        "            'single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_B.default.weight': torch.ones(27648, 2)}}\n"
        "TEMPLATE_MODEL = Net",
    )
    ours, theirs = (predict(load(name)[0], images((40, 48))) for name in ("ink/", "klein/"))
    assert theirs[0].lora.base_model == "flux2-klein-4b"
    styled = ApplyPredictedLoRA.execute(model, ours[0], 1.0)[0]
    with pytest.raises(
        I2LError, match=r"for FLUX\.2 klein 4B \(flux2-klein-4b\), but the MODEL is .*\(i2l-tiny\)"
    ):
        ApplyPredictedLoRA.execute(styled, theirs[0], 1.0)


def test_the_node_says_what_it_recognised(root: Path):
    template_folders.style(root / "ink")
    out = load("ink/")
    assert shown(out).splitlines() == [
        "Diffusion Template Style with its own encoder, 1 MB",
        "which base model it is for, its first prediction shows",
    ]
    predict(out[0], images((40, 48)))
    assert out[0].describe().splitlines()[1] == (
        "for the tiny demo model of ComfyUI-i2L (i2l-tiny), rank 3, 6 layers"
    )
    template_folders.style(root / "ZImage-i2L-v2", weights=False)
    assert shown(load("ZImage-i2L-v2/")).splitlines() == [
        "Diffusion Template Style with its own encoder, no weights: it starts from random ones",
        "which base model it is for, its first prediction shows; by its name, Z-Image",
    ]


def test_other_outputs_are_named(root: Path):
    template_folders.style(root / "ink", more=template_folders.KV_CACHE + ", 'text_embedding': features")
    out = predict(load("ink/")[0], images((40, 48)))
    assert shown(out).splitlines()[1] == (
        "not a part of the LoRA, left out: kv_cache, text_embedding (Load Template gives the kv_cache)"
    )


def test_names_that_no_table_knows_are_said_and_refused_where_they_cannot_land(root: Path, model):
    from i2l.nodes.apply import ApplyPredictedLoRA

    folder = template_folders.style(root / "ink")
    program = (folder / "model.py").read_text()
    (folder / "model.py").write_text(program.replace('f"{name}.lora_', 'f"other.{name}.lora_'))
    out = predict(load("ink/")[0], images((40, 48)))
    assert shown(out).splitlines()[1] == "for a base model that is not known"
    with pytest.raises(I2LError, match=r"the LoRA does not fit this MODEL, .*the model has no such weight"):
        ApplyPredictedLoRA.execute(model, out[0], 1.0)


def test_the_neutral_lora_depends_on_sizes_only_and_is_kept(root: Path, monkeypatch):
    template_folders.style(root / "ink")
    predictor = load("ink/")[0]
    runs = []
    plain = type(predictor.loaded).run
    monkeypatch.setattr(
        type(predictor.loaded),
        "run",
        lambda self, given, pipe=None: runs.append(len(given["image"])) or plain(self, given, pipe),
    )
    first = predict(predictor, images((40, 48), (30, 30)))
    again = predict(predictor, images((40, 48), (30, 30)))
    assert runs == [2, 2, 2]
    assert first[1].lora is again[1].lora
    assert first[0].lora is not again[0].lora
    for side in range(10, 20):
        predict(predictor, images((side, side)))
    assert len(predictor.neutrals) == 4


def test_weights_and_masks(root: Path):
    template_folders.style(root / "ink")
    predictor = load("ink/")[0]
    one, two = (Reference(picture[0]) for picture in images((40, 48), (30, 30)).values())
    twice = predictor.predict([Reference(one.pixels, 2), Reference(two.pixels, 0)])
    expected = predictor.predict([one, one])
    assert _same(twice.lora, expected.lora)
    assert _same(twice.neutral, expected.neutral)
    assert not _same(twice.lora, predictor.predict([one]).lora)

    mask = torch.zeros(40, 48)
    mask[:, :24] = 1
    masked = predictor.predict([Reference(one.pixels, mask=mask)])
    filled = one.pixels.clone()
    filled[:, 24:] = one.pixels[:, :24].mean((0, 1))
    assert _same(masked.lora, predictor.predict([Reference(filled)]).lora)

    for weight in (0.5, MAX_WEIGHT + 1, 1.25):
        with pytest.raises(
            I2LError, match=rf"expected a whole number from 0 to {MAX_WEIGHT}, got {weight:g}"
        ):
            predictor.predict([one, Reference(two.pixels, weight)])


def _same(a, b) -> bool:
    return a.layers.keys() == b.layers.keys() and all(
        torch.equal(layer.down, b.layers[target].down) and torch.equal(layer.up, b.layers[target].up)
        for target, layer in a.layers.items()
    )


def test_a_prediction_that_is_not_finite(root: Path):
    folder = template_folders.style(root / "ink")
    program = (folder / "model.py").read_text()
    (folder / "model.py").write_text(program.replace("a(state).view", "(a(state) / 0).view"))
    with pytest.raises(
        I2LError, match=r"the lora of the Diffusion Template ink: .* holds NaN or infinite values"
    ):
        predict(load("ink/")[0], images((40, 48)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lora_B.default", "lora_C.default"), "are not LoRA layers"),
        (("view(d_out, self.rank)", "view(-1)"), "a LoRA layer needs matrices"),
        (("view(d_out, self.rank)", "view(self.rank, d_out)"), "the ranks of a LoRA layer differ"),
        (("view(d_out, self.rank)", "view(d_out, self.rank).long()"), "expected floating point tensors"),
    ],
)
def test_loras_that_are_none(root: Path, change: tuple[str, str], message: str):
    folder = template_folders.style(root / "ink")
    (folder / "model.py").write_text((folder / "model.py").read_text().replace(*change))
    with pytest.raises(I2LError, match=message) as caught:
        predict(load("ink/")[0], images((40, 48)))
    assert str(caught.value).startswith("the lora of the Diffusion Template ink: ")
    assert "\n" not in str(caught.value)


def test_progress_and_cancel(root: Path):
    import comfy.model_management

    template_folders.style(root / "ink")
    predictor = load("ink/")[0]
    references = references_from(images((40, 48)))
    steps = []
    predictor.predict(references, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        predictor.predict(references)
    predictor.predict(references)


# memory


def test_the_host_moves_it_as_its_own_to_does(root: Path):
    """Buffers move too, and what the network itself moves in its `to`, and a `device` of its own is no obstacle."""
    folder = template_folders.style(root / "ink")
    program = (folder / "model.py").read_text()
    method = (
        "    device = property(lambda self: self.look.weight.device)\n\n"
        "    def to(self, *args, **kwargs):\n        self.moves = getattr(self, 'moves', 0) + 1\n"
        "        return super().to(*args, **kwargs)\n\n    def forward("
    )
    (folder / "model.py").write_text(program.replace("    def forward(", method))
    predictor = load("ink/")[0]
    (patcher,) = predictor.get_models()
    before = predictor.loaded.model.moves
    predict(predictor, images((40, 48)))
    assert predictor.loaded.model.moves > before
    patcher.model.to(torch.device("meta"))  # stands for a GPU: where the weights go, everything goes
    tensors = [*predictor.loaded.model.parameters(), *predictor.loaded.model.buffers()]
    assert len(tensors) > 10
    assert all(tensor.is_meta for tensor in tensors)


def test_the_host_knows_it_and_its_size(root: Path):
    import comfy.model_management

    template_folders.style(root / "ink")
    predictor = load("ink/")[0]
    predict(predictor, images((40, 48)))
    (patcher,) = predictor.get_models()
    assert predictor.held is patcher
    assert any(loaded.model is patcher for loaded in comfy.model_management.current_loaded_models)
    parameters = sum(p.numel() * p.element_size() for p in predictor.loaded.model.parameters())
    assert parameters <= patcher.model_size() < parameters * 1.1


def test_a_network_that_is_no_module_needs_no_patcher(root: Path, model):
    folder = template_folders.style(root / "ink", weights=False)
    program = (folder / "model.py").read_text()
    (folder / "model.py").write_text(
        program + "\n\nclass Plain:\n    def __init__(self):\n        self.network = Style()\n"
        "    def process_inputs(self, **kwargs):\n        return self.network.process_inputs(**kwargs)\n"
        "    def forward(self, **kwargs):\n        return self.network.forward(**kwargs)\n\nTEMPLATE_MODEL = Plain\n"
    )
    predictor = load("ink/")[0]
    assert predictor.get_models() == []
    assert predict(predictor, images((40, 48)))[0].lora.n_layers == 6


def test_a_failed_run_can_be_followed_by_a_good_one(root: Path):
    folder = template_folders.style(root / "ink")
    program = (folder / "model.py").read_text()
    (folder / "model.py").write_text(
        program.replace("features = []", "features = [] if len(image) > 1 else 1 / 0")
    )
    predictor = load("ink/")[0]
    with pytest.raises(I2LError, match=r"ink: its model\.py failed in process_inputs: ZeroDivisionError"):
        predict(predictor, images((40, 48)))
    assert predict(predictor, images((40, 48), (40, 48)))[0].lora.n_layers == 6
    assert ((48, 40), (48, 40)) in predictor.neutrals
    assert len(predictor.neutrals) == 1
