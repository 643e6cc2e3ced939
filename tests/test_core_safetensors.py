"""Files that lie in their header, and files that change while they are in use."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import save_random_predictor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files.safetensors import LONGEST_NAME, open_safetensors, read_tensor
from i2l.i2l_core.inspection import inspect_path
from i2l.i2l_core.lora_files.file import load
from i2l.i2l_core.predictors.query.file import load_predictor

DOWN, UP = "layers.0.attention.qkv.lora_down.weight", "layers.0.attention.qkv.lora_up.weight"


def lora_file(path: Path, fill: float = 1.0) -> Path:
    save_file({DOWN: torch.full((2, 3840), fill), UP: torch.full((11520, 2), fill)}, path)
    return path


def with_header(path: Path, change) -> Path:
    """The file with the text of its header changed."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length].decode()).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return path


def twice(text: str) -> str:
    """The first tensor listed again, at the end."""
    name, about = next(item for item in json.loads(text).items() if item[0] != "__metadata__")
    return f"{text.rstrip()[:-1]},{json.dumps(name)}:{json.dumps(about)}}}"


def test_a_name_that_comes_twice_is_refused_wherever_files_are_read(tmp_path: Path):
    lora = with_header(lora_file(tmp_path / "a.safetensors"), twice)
    with pytest.raises(I2LError, match=r"^a\.safetensors: its header has layers\..* twice, so it is damaged"):
        load(lora)
    predictor = with_header(save_random_predictor(tmp_path / "p.safetensors"), twice)
    with pytest.raises(I2LError, match=r"^p\.safetensors: its header has .* twice"):
        load_predictor(predictor)
    assert "twice" in str(inspect_path(lora).verdict)


def test_names_without_end_are_refused_before_anything_looks_at_them(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"layers." + "1" * 16_000 + ".attention.qkv.lora_down.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(
        I2LError, match=rf"a\.safetensors: .* name of 160\d\d characters.*at most {LONGEST_NAME}"
    ):
        load(path)
    with pytest.raises(I2LError, match="characters"), open_safetensors(path):
        pass


@pytest.mark.parametrize("way", ["overwritten", "cut"])
def test_a_loaded_lora_outlives_its_file(tmp_path: Path, way: str):
    """Mapped, it would become another LoRA, or end the process when a value is read."""
    path = lora_file(tmp_path / "a.safetensors")
    other = lora_file(tmp_path / "b.safetensors", 7.0).read_bytes()
    lora = load(path)
    if way == "cut":
        os.truncate(path, 4096)
    else:
        with path.open("r+b") as file:
            file.write(other)
    (layer,) = lora.layers.values()
    assert torch.equal(layer.down, torch.ones(2, 3840))
    assert torch.equal(layer.up, torch.ones(11520, 2))


def test_a_loaded_predictor_outlives_its_file(tmp_path: Path):
    path = save_random_predictor(tmp_path / "p.safetensors")
    before = load_file(path)
    before = {name: tensor.clone() for name, tensor in before.items()}
    loaded = load_predictor(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * (path.stat().st_size // 2))
    for name, tensor in loaded.predictor.state_dict().items():
        assert torch.equal(tensor, before[f"predictor.{name}"])


def test_a_tensor_that_is_read_has_memory_of_its_own(tmp_path: Path):
    path = lora_file(tmp_path / "a.safetensors")
    with open_safetensors(path) as file:
        mapped, own = file.get_tensor(DOWN), read_tensor(file, DOWN)
    lora_file(tmp_path / "b.safetensors", 3.0)
    with path.open("r+b") as file:
        file.write((tmp_path / "b.safetensors").read_bytes())
    assert mapped[0, 0] == 3  # so that the tests above can fail
    assert own[0, 0] == 1


def test_an_alpha_that_makes_a_layer_infinite_is_named(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    alpha = DOWN.replace("lora_down.weight", "alpha")
    save_file({DOWN: torch.ones(2, 3840), UP: torch.full((11520, 2), 1e10), alpha: torch.tensor(3e38)}, path)
    with pytest.raises(I2LError, match=r"a\.safetensors: the alpha of .* infinite; export it again"):
        load(path)
