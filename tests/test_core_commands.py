"""`python -m i2l_core predict` and `inspect`: the same LoRAs as in ComfyUI, and words for whatever a file is."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_core_checkpoint import META, made
from tiny_encoders import TINY, WIDTH, save_encoder, tiny_tensors
from tiny_v1 import PUBLISHED, TINY_MODELS, known, random_predictor, save

from i2l.i2l_core.base_models import MODELS
from i2l.i2l_core.commands import inspect, predict
from i2l.i2l_core.encoders import DINOV3, SIGLIP2, load_pooled
from i2l.i2l_core.lora import LoRA
from i2l.i2l_core.lora_files.file import load
from i2l.i2l_core.lora_files.file import save as save_lora
from i2l.i2l_core.lora_files.tensors import to_state_dict
from i2l.i2l_core.mixing.whole_weights import in_whole_weights
from i2l.i2l_core.predictors.query.file import save_predictor
from i2l.i2l_core.predictors.v1 import kinds as v1_kinds
from i2l.i2l_core.predictors.v1.kinds import QWEN, Z_IMAGE, Residual, V1Config
from i2l.i2l_core.predictors.v1.network import load_v1
from i2l.i2l_core.references import GRAY
from i2l.i2l_core.references.files import read_reference
from i2l.tools.host import ROOT

PICTURES = sorted((ROOT / "workflows" / "references").glob("glass_*.png"))[:2]


@pytest.fixture
def query(tmp_path: Path) -> Path:
    save_predictor(tmp_path / "tiny.safetensors", *made(), META)
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A predictor for the demo world, and its encoders beside it as they are published."""
    folder = tmp_path / "v1"
    save_encoder(folder / "SigLIP2-G384" / "model.safetensors", TINY[SIGLIP2], torch.bfloat16)
    save_encoder(folder / "DINOv3-7B" / "model.safetensors", TINY[DINOV3], torch.bfloat16)
    predictor = random_predictor(V1Config(Z_IMAGE, known("i2l-tiny"), WIDTH, 3), torch.bfloat16)
    return save(predictor, folder / "tiny v1.safetensors")


class Run:
    """A command in this process: its status, and what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, command: Any, *arguments: object) -> tuple[int, str, str]:
        status = command.main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return status, out, err

    def saved(self, *arguments: object) -> list[LoRA]:
        status, out, err = self(predict, *arguments)
        assert (status, err) == (0, "")
        return [load(path) for path in out.splitlines()]

    def refused(self, command: Any, *arguments: object) -> str:
        status, out, err = self(command, *arguments)
        assert (status, out) == (1, "")
        assert err.endswith("\n")
        assert "\n" not in err[:-1]
        return err[:-1]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


def same(found: LoRA, expected: LoRA) -> None:
    ours, theirs = to_state_dict(in_whole_weights(found)), to_state_dict(in_whole_weights(expected))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor)
    assert (found.base_model, found.predictor, found.references) == (
        expected.base_model,
        expected.predictor,
        expected.references,
    )


# predict


def test_a_prediction_is_that_of_the_host(host: Any, query: Path, tmp_path: Path, run: Run):
    from i2l.i2l_core.host.predictors.runtime import load_predictor

    style, neutral = run.saved(
        *PICTURES,
        "--predictor",
        query,
        "--out",
        tmp_path / "a",
        "--neutral-out",
        tmp_path / "b",
        "--weights",
        "2,1",
    )
    references = [read_reference(path, weight) for path, weight in zip(PICTURES, (2.0, 1.0), strict=True)]
    expected = load_predictor(query).predict(references)
    same(style, expected.lora)
    same(neutral, expected.neutral)
    assert sorted(path.name for path in tmp_path.glob("?.safetensors")) == ["a.safetensors", "b.safetensors"]


def test_version_1_runs_both_encoders_and_the_predictor(version_1: Path, tmp_path: Path, run: Run):
    style, neutral = run.saved(
        *PICTURES,
        "--predictor",
        version_1,
        "--out",
        tmp_path / "a",
        "--neutral-out",
        tmp_path / "b",
        "--weights",
        "2,1",
    )
    files = [version_1.parent / name / "model.safetensors" for name in ("SigLIP2-G384", "DINOv3-7B")]
    encoders = [load_pooled(path, torch.bfloat16) for path in files]
    predictor = load_v1(version_1).predictor

    def lora(pictures: list[torch.Tensor], weights: tuple[float, ...]) -> LoRA:
        with torch.no_grad():
            return predictor(torch.cat([encoder.encode(pictures) for encoder in encoders], dim=1), weights)

    expected = lora([read_reference(path).pixels for path in PICTURES], (2, 1))
    assert style.layers.keys() == in_whole_weights(expected).layers.keys()
    for target, layer in in_whole_weights(expected).layers.items():
        assert torch.equal(style.layers[target].up, layer.up)
        assert torch.equal(style.layers[target].down, layer.down)
    assert (style.rank, style.base_model, style.predictor) == (
        24,
        "i2l-tiny",
        "tiny v1",
    )  # 4 x 2, q k and v in one
    assert style.references == tuple(read_reference(path).hash for path in PICTURES)
    for target, layer in in_whole_weights(lora([torch.full((50, 70, 3), GRAY)], (1,))).layers.items():
        assert torch.equal(neutral.layers[target].delta(), layer.delta())


def test_encoders_may_be_files_or_in_folders_elsewhere(version_1: Path, tmp_path: Path, run: Run):
    expected = run.saved(PICTURES[0], "--predictor", version_1, "--out", tmp_path / "a")[0]
    moved = tmp_path / "encoders"
    moved.mkdir()
    for name in ("SigLIP2-G384", "DINOv3-7B"):
        (version_1.parent / name / "model.safetensors").rename(moved / f"{name}.safetensors")
    arguments = (PICTURES[0], "--predictor", version_1, "--out", tmp_path / "b")
    message = run.refused(predict, *arguments)
    for part in (
        "SigLIP2: get SigLIP2-G384/model.safetensors of",
        "DINOv3: get DINOv3-7B/model.safetensors of",
        "DiffSynth-Studio/General-Image-Encoders",
        "say with --encoders where they are",
    ):
        assert part in message
    same(run.saved(*arguments, "--encoders", moved)[0], expected)
    same(run.saved(*arguments, "--encoders", *sorted(moved.iterdir(), reverse=True))[0], expected)
    message = run.refused(predict, *arguments, "--encoders", moved / "DINOv3-7B.safetensors")
    assert "SigLIP2: get SigLIP2-G384/model.safetensors of" in message


def test_nothing_is_overwritten_and_names_get_their_ending(query: Path, tmp_path: Path, run: Run):
    arguments = (PICTURES[0], "--predictor", query, "--out")
    names = [
        run(predict, *arguments, tmp_path / "new" / name)[1] for name in ("my.style", "my.style.safetensors")
    ]
    assert names == [f"{tmp_path}/new/my.style.safetensors\n", f"{tmp_path}/new/my.style_00002.safetensors\n"]


@pytest.mark.parametrize("layout", ["ComfyUI", "diffusers", "DiffSynth"])
def test_files_of_every_layout_are_the_same_lora(version_1: Path, tmp_path: Path, run: Run, layout: str):
    arguments = (PICTURES[0], "--predictor", version_1, "--out", tmp_path / "a", "--dtype", "fp32")
    expected = in_whole_weights(run.saved(*arguments)[0])
    found = in_whole_weights(run.saved(*arguments, "--layout", layout)[0])
    assert found.layers.keys() == expected.layers.keys()
    for target, layer in expected.layers.items():
        torch.testing.assert_close(found.layers[target].delta(), layer.delta())


def test_the_types_that_can_be_asked_for(query: Path, tmp_path: Path, run: Run):
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        arguments = (PICTURES[0], "--predictor", query, "--out", tmp_path / name, "--dtype", name)
        lora = run.saved(*arguments, "--device", "cpu")[0]
        assert {layer.up.dtype for layer in lora.layers.values()} == {dtype}


def test_what_cannot_be_predicted_is_said_in_one_line(query: Path, version_1: Path, tmp_path: Path, run: Run):
    out = ("--predictor", query, "--out", tmp_path / "out")
    (tmp_path / "broken.png").write_bytes(PICTURES[0].read_bytes()[:5000])
    (tmp_path / "file").write_text("")
    assert "broken.png: expected a picture" in run.refused(
        predict, PICTURES[0], tmp_path / "broken.png", *out
    )
    assert "none.png: expected a picture" in run.refused(predict, tmp_path / "none.png", *out)
    assert "the weights of all references are 0" in run.refused(predict, *PICTURES, *out, "--weights", "0,0")
    assert "--weights: expected one for each of 2" in run.refused(predict, *PICTURES, *out, "--weights", "1")
    assert "0 or more, got -1.0" in run.refused(predict, *PICTURES, *out, "--weights", "1,-1")
    assert "cannot use 'abacus' here" in run.refused(predict, *PICTURES, *out, "--device", "abacus")
    for predictor, message in {
        tmp_path: "Diffusion Templates are programs",
        tmp_path / "none.safetensors": "there is no such file",
        PICTURES[0]: "truncated or not a safetensors file",
        version_1.parent / "DINOv3-7B" / "model.safetensors": "expected a predictor file, but",
    }.items():
        arguments = (PICTURES[0], "--predictor", predictor, "--out", tmp_path / "out")
        assert message in run.refused(predict, *arguments)
    where = ("--predictor", query, "--out", tmp_path / "file" / "a")
    assert "file is not a folder that can be written" in run.refused(predict, PICTURES[0], *where)
    assert not list(tmp_path.glob("out*"))


def test_predictors_that_need_more_than_two_encoders(
    version_1: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(v1_kinds, "MODELS", (*MODELS, *TINY_MODELS))
    reads = V1Config(QWEN, TINY_MODELS[1], WIDTH, 3, residual=Residual(5, 6, 2))
    path = save(random_predictor(reads), tmp_path / "reads.safetensors")
    arguments = ("--out", tmp_path / "a", "--encoders", version_1.parent)
    message = run.refused(predict, PICTURES[0], "--predictor", path, *arguments)
    assert "also needs the text encoder of Qwen-Image, which runs only in ComfyUI" in message
    other = V1Config(Z_IMAGE, known("i2l-tiny"), 10, 3)
    path = save(random_predictor(other), tmp_path / "narrow.safetensors")
    message = run.refused(predict, PICTURES[0], "--predictor", path, *arguments)
    assert "needs image encoders that are missing (of another size: " in message


@pytest.mark.slow
def test_the_command_line_needs_no_host(query: Path, tmp_path: Path):
    """In a process of its own, from the repository's root, where `comfy` cannot be imported."""
    command = [sys.executable, "-m", "i2l_core", "predict", *map(str, PICTURES), "--predictor", str(query)]
    code = "import sys; sys.modules['comfy'] = None; import runpy; runpy.run_module('i2l_core', run_name='__main__')"
    command[1:3] = ["-c", code]
    out = subprocess.run([*command, "--out", str(tmp_path / "a")], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stdout) == (0, f"{tmp_path / 'a.safetensors'}\n"), out.stderr


# inspect


def test_each_family_is_told_from_its_file(query: Path, version_1: Path, tmp_path: Path, run: Run):
    lora = in_whole_weights(load_v1(version_1).predictor(torch.randn(2, WIDTH, dtype=torch.bfloat16)))
    save_lora(lora, tmp_path / "lora.safetensors", key_format="diffusers")
    save_lora(lora, tmp_path / "comfy.safetensors")
    cases = {
        query: ("an i2L predictor of the query family for the tiny demo model", "rank 2, 3 layers"),
        version_1: ("an i2L predictor of version 1 for the tiny demo model", "rank 4 per picture, 56 layers"),
        version_1.parent / "DINOv3-7B" / "model.safetensors": (
            "an image encoder of i2L version 1: DINOv3 (width 128",
        ),
        tmp_path / "lora.safetensors": (
            "a LoRA for the tiny demo model of ComfyUI-i2L (i2l-tiny)",
            "56 layers",
        ),
        tmp_path / "comfy.safetensors": (
            "a LoRA for the tiny demo model of ComfyUI-i2L (i2l-tiny)",
            "40 layers",
        ),
    }
    for path, parts in cases.items():
        status, out, err = run(inspect, path)
        assert (status, err) == (0, "")
        what = out.splitlines()[1]
        assert all(part in what for part in parts), what


def test_tensors_come_grouped_by_shape(version_1: Path, run: Run):
    lines = run(inspect, version_1)[1].splitlines()
    assert (
        lines[0]
        == f"tiny v1.safetensors, {version_1.stat().st_size / 1e6:.1f} MB, 224 tensors, 0.6 million values"
    )
    assert lines[2].startswith(
        "  to do  put it into models/i2l and load it with Load i2L Predictor; it needs SigLIP2-"
    )
    groups = [" ".join(line.split()) for line in lines[4:]]
    assert "12 x 3072x3 BF16 layers_lora.blocks.*.layers.*.proj_b.proj_out.weight" in groups
    assert "6 x 3072x3 BF16 layers_lora.blocks.*.layers.*.proj_a.proj_out.weight" in groups
    everything = json.loads(run(inspect, version_1, "--json")[1])
    assert sum(group["count"] for group in everything["groups"]) == 224
    assert everything["verdict"] in lines[1]


@pytest.mark.parametrize("title", PUBLISHED)
def test_published_files_are_known_by_their_titles(title: str, tmp_path: Path, run: Run):
    """A sparse file of the full size: only its header is real."""
    path = sparse(tmp_path / "model.safetensors", PUBLISHED[title][0].shapes())
    status, out, _ = run(inspect, path)
    os.unlink(path)
    assert status == 0
    assert f"  what   {title}, an i2L predictor of version 1 for " in out
    assert ("and Qwen-Image's CLIP in ComfyUI" in out) == title.endswith(("Coarse", "Fine"))
    assert ("of 224x224" in out, "of 1024x1024" in out) == (title.endswith("Coarse"), title.endswith("Fine"))


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A bf16 file of these tensors that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)
    return path


def test_models_loras_and_encoders_of_full_size_are_known(tmp_path: Path, run: Run):
    z_image, qwen = known("z-image"), known("qwen-image")
    cases = {
        "the diffusion model Z-Image (z-image)": dict(z_image.weights()),
        "the diffusion model Qwen-Image (qwen-image)": {
            f"diffusion_model.{n}": s for n, s in qwen.weights().items()
        },
        "a LoRA for Qwen-Image (qwen-image): rank 4, 720 layers": {
            f"{slot.name}.lora_{m}.default.weight": shape
            for slot in PUBLISHED["Qwen-Image-i2L Style"][0].adapted_layers
            for m, shape in (("A", (4, slot.d_in)), ("B", (slot.d_out, 4)))
        },
    }
    for verdict, shapes in cases.items():
        path = sparse(tmp_path / "model.safetensors", shapes)
        out = run(inspect, path)[1]
        assert f"  what   {verdict}\n" in out
        assert ("Qwen-Image-i2L-Bias is such a file" in out) == ("LoRA for Qwen" in verdict)


def test_broken_ones_are_known_for_what_they_should_be(
    query: Path, version_1: Path, tmp_path: Path, run: Run
):
    tensors = {name: tensor.clone() for name, tensor in load_v1(version_1).predictor.tensors().items()}
    del tensors["layers_lora.blocks.0.layers.0.proj_a.proj_in.weight"]
    save_file(tensors, tmp_path / "v1.safetensors")
    encoder = tiny_tensors(TINY[SIGLIP2])
    encoder["head.probe"] = encoder["head.probe"][..., :-1].contiguous()
    save_file(encoder, tmp_path / "encoder.safetensors")
    save_file(
        {"predictor.queries": torch.zeros(2)},
        tmp_path / "query.safetensors",
        {"i2l": '{"format": "i2l-predictor"'},
    )
    for name, message in {
        "v1": "an i2L predictor of version 1 that cannot be used: its tensors are not those of a predictor like i2L",
        "encoder": "an image encoder of i2L version 1 that cannot be used: its tensors are not those of SigLIP2",
        "query": "a predictor of the query family that cannot be used: its metadata is damaged",
    }.items():
        status, out, _ = run(inspect, tmp_path / f"{name}.safetensors")
        assert status == 0
        assert message in out.splitlines()[1]


def test_other_files_get_a_verdict_too(tmp_path: Path, run: Run):
    for content, message in {
        b"\x80\x02}q\x00.": "a pickle, which is never read",
        b"GGUF\x03": "a GGUF model",
        b"": "truncated or not a safetensors file",
    }.items():
        (tmp_path / "file").write_bytes(content)
        status, out, _ = run(inspect, tmp_path / "file")
        assert status == 0
        assert f"  what   {message}" in out
    assert "there is no such file" in run.refused(inspect, tmp_path / "none")


def test_a_template_is_described_and_not_run(tmp_path: Path, run: Run):
    folder = tmp_path / "Some-i2L-v2"
    folder.mkdir()
    assert "Some-i2L-v2 is a folder without model.py" in run.refused(inspect, folder)
    program = f"open({str(tmp_path / 'executed')!r}, 'w')\nimport torch, no_such_package\n"
    (folder / "model.py").write_text(
        f"{program}class Net: ...\nTEMPLATE_MODEL = Net\nTEMPLATE_MODEL_PATH = 'w.safetensors'"
    )
    assert (
        "that cannot be used: Some-i2L-v2: its weights w.safetensors are missing" in run(inspect, folder)[1]
    )
    save_file({"x": torch.zeros(500_000)}, folder / "w.safetensors")
    out = run(inspect, folder)[1].splitlines()
    assert out[1].startswith(
        "  what   a Diffusion Template Net with its own encoder, 2 MB, not installed: no_such_package"
    )
    assert "model.py, runs only where that is allowed" in out[2]
    assert not (tmp_path / "executed").exists()


def test_what_a_hostile_file_says_cannot_reach_the_terminal(tmp_path: Path, run: Run):
    evil = "\x1b[2J\x1b]0;owned\x07\r\n\u202efdp\u0000"
    many = {f"{evil}{'x' * 300}{i}y{j}": torch.zeros(1, i + 1) for i in range(60) for j in "ab"}
    save_file(many, tmp_path / "evil.safetensors", {f"{evil}{i}": evil * 10_000 for i in range(99)})
    status, out, err = run(inspect, tmp_path / "evil.safetensors")
    assert (status, err) == (0, "")
    assert all(char.isprintable() for line in out.split("\n") for char in line)
    lines = out.splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) < 1200
    assert any(line.strip().endswith("more shapes") for line in lines)
    assert any(line.strip() == "and 59 more entries" for line in lines)
