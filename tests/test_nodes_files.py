"""Load i2L Predictor and Save Predicted LoRA: the right folders, nothing overwritten, no to bad names."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_world import save_random_predictor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.lora_files import file as lora_file


@pytest.fixture
def folders(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder list with models/i2l and models/loras under tmp_path, as extra paths may set them."""
    import folder_paths

    for name in ("i2l", "loras"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"})
        )
        monkeypatch.delitem(folder_paths.filename_list_cache, name, raising=False)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


def lora() -> LoRA:
    layers = {
        Target("layers.0.attention.qkv", (i * 4, 4)): LowRank(torch.randn(2, 4), torch.randn(4, 2))
        for i in (0, 1)
    }
    return LoRA(layers, base_model="i2l-tiny", predictor="tiny", references=("ab", "cd"))


def predicted():
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    return PredictedLoRA(lora())


def save(value, filename: str, notes: str = "") -> str:
    from i2l.nodes.save import SavePredictedLoRA

    return SavePredictedLoRA.execute(value, filename, notes)[0]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# saving


def test_saved_file_holds_the_lora_and_what_it_is_for(folders: Path):
    assert save(predicted(), "style/ink", "by hand") == os.path.join("style", "ink.safetensors")
    path = folders / "loras" / "style" / "ink.safetensors"
    found = lora_file.load(path)
    assert (found.base_model, found.predictor, found.references) == ("i2l-tiny", "tiny", ("ab", "cd"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(predicted())
    assert metadata["modelspec.description"] == "by hand"
    assert json.loads(metadata["i2l"])["rank"] == 4


def test_nothing_is_overwritten(folders: Path):
    assert save(predicted(), "ink") == "ink.safetensors"
    before = everything(folders)
    assert save(predicted(), "ink") == "ink_00002.safetensors"
    assert save(predicted(), "ink.safetensors") == "ink_00003.safetensors"
    assert before.items() <= everything(folders).items()


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "a/../../out", "", "..", "a\\b", "CON", "a\nb", "x" * 300, "~/../../x"]
)
def test_a_name_that_leaves_the_folder_is_refused(folders: Path, name: str):
    def names() -> set[Path]:  # beside the folder too, where other tests keep files of any size
        return set(folders.parent.rglob("*"))

    before = names()
    with pytest.raises(I2LError, match="cannot save under the name") as caught:
        save(predicted(), name)
    assert "\n" not in str(caught.value)
    assert names() == before


def test_a_full_disk_leaves_nothing(folders: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(I2LError, match=r"cannot save .*No space left on device"):
        save(predicted(), "new/ink")
    assert not list((folders / "loras").iterdir())


def test_the_first_folder_that_can_be_written_is_taken(folders: Path, monkeypatch: pytest.MonkeyPatch):
    import folder_paths

    (folders / "a_file").write_text("")
    paths = [str(folders / name) for name in ("a_file", "a_file/under", "locked", "loras", "later")]
    (folders / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", (paths, {".safetensors"}))
    save(predicted(), "ink")
    assert (folders / "loras" / "ink.safetensors").exists()

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", (paths[:3], {".safetensors"}))
    with pytest.raises(I2LError, match=r"no folder for LoRAs can be written: .*locked"):
        save(predicted(), "ink")

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", (paths[4:], {".safetensors"}))
    save(predicted(), "ink")
    assert (folders / "later" / "ink.safetensors").exists()


def test_lora_of_a_core_node_is_saved_too(folders: Path):
    up = "diffusion_model.x.lora_up.weight"
    tensors = {up: torch.randn(4, 2), "diffusion_model.x.lora_down.weight": torch.randn(2, 4)}
    save(tensors, "core")
    with safe_open(folders / "loras" / "core.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(up), tensors[up])
    with pytest.raises(I2LError, match="not LoRA layers"):
        save({"diffusion_model.x.diff": torch.zeros(4)}, "diffs")


# loading


def test_only_safetensors_are_listed_and_the_file_is_read(folders: Path):
    from i2l.nodes.load import LoadI2LPredictor

    save_random_predictor(folders / "i2l" / "tiny.safetensors")
    (folders / "i2l" / "sub").mkdir()
    save_random_predictor(folders / "i2l" / "sub" / "other.safetensors")
    (folders / "i2l" / "notes.txt").write_text("hello")
    combo: Any = LoadI2LPredictor.define_schema().inputs[0]
    assert combo.options == [os.path.join("sub", "other.safetensors"), "tiny.safetensors"]
    assert LoadI2LPredictor.validate_inputs("tiny.safetensors") is True
    assert LoadI2LPredictor.execute("tiny.safetensors")[0].loaded.base_model == "i2l-tiny"


def test_a_changed_file_is_read_again(folders: Path):
    from i2l.nodes.load import LoadI2LPredictor

    path = save_random_predictor(folders / "i2l" / "tiny.safetensors")
    before = LoadI2LPredictor.fingerprint_inputs("tiny.safetensors")
    assert LoadI2LPredictor.fingerprint_inputs("tiny.safetensors") == before
    os.utime(path, (1, 1))
    assert LoadI2LPredictor.fingerprint_inputs("tiny.safetensors") != before


def test_an_empty_folder_says_what_to_do(folders: Path):
    from i2l.nodes.load import NO_FILES, LoadI2LPredictor

    combo: Any = LoadI2LPredictor.define_schema().inputs[0]
    assert combo.options == [NO_FILES]
    assert str(folders / "i2l") in str(LoadI2LPredictor.validate_inputs(NO_FILES))


@pytest.mark.parametrize("name", ["gone.safetensors", "../loras/x.safetensors", "/etc/passwd"])
def test_a_name_outside_the_list_is_refused(folders: Path, name: str):
    from i2l.nodes.load import LoadI2LPredictor

    save_random_predictor(folders / "i2l" / "tiny.safetensors")
    (folders / "loras" / "x.safetensors").write_bytes(b"x")
    assert "there is no predictor file" in str(LoadI2LPredictor.validate_inputs(name))
    with pytest.raises(I2LError, match="there is no predictor file"):
        LoadI2LPredictor.execute(name)


def test_a_lora_in_the_folder_is_named_as_such(folders: Path):
    from i2l.nodes.load import LoadI2LPredictor

    save_file(dict(predicted()), folders / "i2l" / "lora.safetensors")
    with pytest.raises(I2LError, match=r"lora\.safetensors: expected a predictor file, but it is a LoRA"):
        LoadI2LPredictor.execute("lora.safetensors")


def test_paths_of_the_user_stay_when_the_folder_is_registered(host, tmp_path: Path, monkeypatch):
    import folder_paths

    from i2l.i2l_core.host.folders import register_predictors

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "i2l", ([str(tmp_path)], set()))
    register_predictors()
    register_predictors()
    paths, extensions = folder_paths.folder_names_and_paths["i2l"]
    assert paths == [str(tmp_path), os.path.join(folder_paths.models_dir, "i2l")]
    assert extensions == {".safetensors"}


# other layouts and precisions, and LoRA files as LoRAs


@pytest.mark.parametrize("layout", ["ComfyUI", "diffusers", "DiffSynth"])
@pytest.mark.parametrize("precision", ["as it is", "bfloat16", "float16", "float32"])
def test_what_is_saved_in_any_layout_is_loaded_again(folders: Path, layout: Any, precision: str):
    from i2l.nodes.load_file import LoadLoRAFile
    from i2l.nodes.save import SavePredictedLoRA

    value = predicted()
    name = SavePredictedLoRA.execute(value, "any", layout=layout, precision=precision)[0]
    out = LoadLoRAFile.execute(name)
    dtype = getattr(torch, precision, value.lora.layers[next(iter(value.lora.layers))].down.dtype)
    assert out[0].keys() == value.keys()
    for key, tensor in value.items():
        assert out[0][key].dtype == dtype
        assert torch.equal(out[0][key], tensor.to(dtype))
    shown: Any = out.ui
    assert shown.as_dict()["text"][0].endswith("for i2l-tiny")


def test_saving_says_what_core_does_not_know_and_what_was_left_out(folders: Path):
    from i2l.i2l_core.host.lora_model import PredictedLoRA
    from i2l.nodes.load_file import LoadLoRAFile
    from i2l.nodes.save import SavePredictedLoRA

    layers = {
        Target(name): LowRank(torch.randn(2, 64), torch.randn(64, 2))
        for name in ("time_in.out_layer", "double_blocks.0.img_attn.proj")
    }
    flux = PredictedLoRA(LoRA(layers, base_model="flux2-dev"))
    texts = {}
    for layout in ("ComfyUI", "diffusers"):
        out: Any = SavePredictedLoRA.execute(flux, f"flux/{layout}", layout=layout)  # type: ignore[arg-type]
        texts[layout] = out.ui.as_dict()["text"][0]
    assert texts["ComfyUI"] == f"saved as {os.path.join('flux', 'ComfyUI.safetensors')}"
    assert "ComfyUI's Load LoRA does not know 1 of its layers by these names" in texts["diffusers"]

    text_encoder = {f"lora_te_q.lora_{part}.weight": torch.randn(4, 4) for part in ("down", "up")}
    save_file({**predicted(), **text_encoder}, folders / "loras" / "both.safetensors")
    loaded: Any = LoadLoRAFile.execute("both.safetensors", "auto")
    assert loaded.ui.as_dict()["text"][0].endswith("; left out: layers of a text encoder (1)")
    again: Any = SavePredictedLoRA.execute(loaded[0], "again")
    assert (
        again.ui.as_dict()["text"][0] == "saved as again.safetensors; left out: layers of a text encoder (1)"
    )


def test_numbers_too_large_for_a_precision_are_refused(folders: Path):
    from i2l.nodes.save import SavePredictedLoRA

    up, down = "diffusion_model.x.lora_up.weight", "diffusion_model.x.lora_down.weight"
    tensors = {up: torch.full((4, 2), 1e6), down: torch.randn(2, 4)}
    with pytest.raises(I2LError, match="too large for float16; save it as bfloat16 or float32"):
        SavePredictedLoRA.execute(tensors, "big", precision="float16")
    assert not list((folders / "loras").iterdir())


def test_lora_files_are_listed_and_nothing_outside_them(folders: Path):
    from i2l.nodes.load_file import NO_FILES, LoadLoRAFile

    combo: Any = LoadLoRAFile.define_schema().inputs[0]
    assert combo.options == [NO_FILES]
    assert str(folders / "loras") in str(LoadLoRAFile.validate_inputs(NO_FILES))
    name = save(predicted(), "sub/ink")
    (folders / "loras" / "old.ckpt").write_bytes(b"x")
    combo = LoadLoRAFile.define_schema().inputs[0]
    assert combo.options == [name]
    assert LoadLoRAFile.validate_inputs(name) is True
    before = LoadLoRAFile.fingerprint_inputs(name)
    assert LoadLoRAFile.fingerprint_inputs(name, "i2l-tiny") != before
    for other in ("../secret.safetensors", "/etc/passwd", "old.ckpt"):
        assert "there is no LoRA file" in str(LoadLoRAFile.validate_inputs(other))
        with pytest.raises(I2LError, match="there is no LoRA file"):
            LoadLoRAFile.execute(other)
    with pytest.raises(I2LError, match=r"ink\.safetensors is for i2l-tiny, not for z-image"):
        LoadLoRAFile.execute(name, "z-image")


def test_a_preview_is_kept_as_the_thumbnail_that_lora_managers_show(folders: Path):
    import base64
    import io

    from PIL import Image

    from i2l.nodes.save import SavePredictedLoRA

    pictures = torch.zeros(5, 40, 60, 3)
    pictures[1, ..., 0] = 1
    SavePredictedLoRA.execute(predicted(), "ink", preview=pictures)
    with safe_open(folders / "loras" / "ink.safetensors", "pt") as file:
        url = file.metadata()["modelspec.thumbnail"]
    kind, data = url.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (256, 256)
        assert image.getpixel((192, 64))[0] > 200  # type: ignore[index]
        assert image.getpixel((64, 64))[0] < 50  # type: ignore[index]
    assert len(url) < 20_000


@pytest.mark.parametrize(
    ("listed", "asked"), [("style/ink", "style\\ink"), ("style\\ink", "style/ink"), ("a\\b/c", "a\\b\\c")]
)
def test_a_name_that_another_system_wrote_is_found(folders: Path, listed: str, asked: str):
    """Windows writes style\\ink where others write style/ink; a file may even be called so here."""
    from i2l.i2l_core.host.folders import lora_path, predictor_path

    for kind, find in (("loras", lora_path), ("i2l", predictor_path)):
        file = folders / kind / f"{listed}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        assert find(f"{asked}.safetensors") == file == find(f"{listed}.safetensors")
        with pytest.raises(I2LError, match="choose one from the list"):
            find(f"{asked}x.safetensors")
