"""LoRAs with values that no trainer writes: each is read exactly, or refused in one line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from i2l.i2l_core.base_models import ARCHITECTURES
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files.safetensors import read_header
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.lora_files import names
from i2l.i2l_core.lora_files.file import load, save
from i2l.i2l_core.lora_files.tensors import from_state_dict, to_state_dict

DOWN, UP, ALPHA = "w.lora_down.weight", "w.lora_up.weight", "w.alpha"
FLOAT8 = [kind for name, kind in sorted(vars(torch).items()) if name.startswith("float8_")]


def pair(**more) -> dict[str, torch.Tensor]:
    return {DOWN: torch.full((2, 3), 100.0), UP: torch.full((6, 2), 100.0), **more}


def refusal(tensors) -> str:
    with pytest.raises(I2LError) as error:
        from_state_dict(tensors, source="a.safetensors")
    message = str(error.value)
    assert message.startswith("a.safetensors: ")
    assert message.isprintable()
    return message


@pytest.mark.parametrize("kind", FLOAT8, ids=str)
def test_every_finite_value_of_every_8_bit_float_is_read_exactly(tmp_path, kind):
    values = torch.arange(256, dtype=torch.uint8).view(kind)
    finite = values.float().isfinite()
    down = values.view(torch.uint8)[finite][None].view(kind)
    save_file({DOWN: down, UP: torch.ones(4, 1).to(kind)}, tmp_path / "a.safetensors")
    (layer,) = load(tmp_path / "a.safetensors").layers.values()
    assert torch.equal(layer.down.double(), down.double())


@pytest.mark.parametrize("kind", FLOAT8, ids=str)
def test_8_bit_floats_that_are_not_finite_are_refused(kind):
    values = torch.arange(256, dtype=torch.uint8).view(kind)
    bad = values.view(torch.uint8)[~values.float().isfinite()][None].view(kind)
    with pytest.raises(I2LError, match="a: w holds NaN or infinite values"):
        from_state_dict({DOWN: bad, UP: torch.ones(4, 1)}, source="a")


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this PyTorch has no 4 bit floats")
def test_4_bit_floats_are_refused():
    kind = torch.float4_e2m1fn_x2
    tensors = {key: torch.zeros(2, 2, dtype=torch.uint8).view(kind) for key in (DOWN, UP)}
    assert "float4_e2m1fn_x2 (2, 2), which PyTorch cannot convert; export" in refusal(tensors)
    alpha = torch.zeros((), dtype=torch.uint8).view(kind)
    assert "the alpha of w must be one finite number" in refusal(pair(**{ALPHA: alpha}))


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(1 + 2j), torch.tensor(1 + 0j), torch.ones((), device="meta"), torch.ones(2), "1", 1.0],
)
def test_an_alpha_that_is_no_number_is_refused(alpha):
    assert "the alpha of w must be one finite number, got" in refusal(pair(**{ALPHA: alpha}))


@pytest.mark.parametrize("alpha", [torch.tensor(3e38), torch.tensor(1e308, dtype=torch.float64)])
def test_an_alpha_that_makes_values_infinite_is_blamed_itself(alpha):
    message = refusal(pair(**{ALPHA: alpha}))
    assert f"the alpha of w, {float(alpha):.3g}, makes its values infinite" in message


def test_an_alpha_that_is_large_and_fits_is_kept():
    (layer,) = from_state_dict(pair(**{ALPHA: torch.tensor(2e30)})).layers.values()
    assert torch.equal(layer.up, torch.full((6, 2), 100.0) * 1e30)


@pytest.mark.parametrize("alpha", ["9" * 400, "1e400", "NaN", '"x"', "[1]", "true"])
def test_an_alpha_of_the_header_that_is_no_finite_number_is_refused(tmp_path, alpha):
    said = {"lora_adapter_metadata": f'{{"lora_alpha": {alpha}}}'}
    save_file(pair(), tmp_path / "a.safetensors", said)
    with pytest.raises(I2LError, match=r"a.safetensors: lora_alpha in its header must be a finite number"):
        load(tmp_path / "a.safetensors")


def test_an_alpha_of_the_header_that_makes_values_infinite_is_refused(tmp_path):
    save_file(
        pair(), tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps({"lora_alpha": 1e308})}
    )
    with pytest.raises(I2LError, match=r"a.safetensors: the alpha of w, 1e\+308, makes its values infinite"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_values_that_are_no_floats_are_refused(kind):
    message = refusal({key: tensor.to(kind) for key, tensor in pair().items()})
    assert f"w holds {kind} (2, 3), expected floating point tensors" in message


@pytest.mark.parametrize("made", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta"), lambda _: None])
def test_tensors_without_plain_values_are_refused(made):
    assert "expected floating point tensors" in refusal({key: made(tensor) for key, tensor in pair().items()})


@pytest.mark.parametrize("shape", [(), (2,)])
def test_what_is_no_matrix_is_refused_where_a_base_model_is_given(tmp_path, shape):
    save_file({DOWN: torch.ones(shape), UP: torch.ones(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(I2LError, match=r"a.safetensors: w: a LoRA layer needs matrices"):
        load(tmp_path / "a.safetensors", "z-image")


@pytest.mark.parametrize("key", [3, (1, 2), None, b"w.alpha"])
def test_a_key_that_is_no_text_is_refused(key):
    with pytest.raises(I2LError, match=r"a: 1 of 3 tensors are not LoRA layers"):
        from_state_dict({**pair(), key: torch.ones(1)}, source="a")


QKV = "layers.0.attention.qkv"


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_a_fused_layer_of_no_equal_parts_is_refused(rows):
    layer = LowRank(torch.ones(2, 3), torch.ones(rows, 2))
    tensors = to_state_dict(LoRA({Target(QKV): layer}))
    expected = rf"expected a multiple of 3 rows, as {QKV} is of 3 equal parts, got {rows}; "
    with pytest.raises(I2LError, match=f"a: diffusion_model.{QKV}: {expected}"):
        from_state_dict(tensors, "z-image", source="a")
    for key_format in ("diffusers", "DiffSynth"):
        with pytest.raises(I2LError, match=expected):
            to_state_dict(LoRA({Target(QKV): layer}, base_model="z-image"), key_format)


def test_a_fused_layer_of_equal_parts_is_read():
    layer = LowRank(torch.ones(2, 3), torch.ones(6, 2))
    lora = from_state_dict(to_state_dict(LoRA({Target(QKV): layer})), "z-image")
    assert len(to_state_dict(lora, "diffusers")) == 6


@pytest.mark.parametrize("where", ["predictor", "references", "base_model"])
def test_lone_surrogates_in_what_a_lora_says_are_saved_and_read_again(tmp_path, where):
    said = {"predictor": "p", "references": ("r",), "base_model": "m"}
    said[where] = ("a\ud800b",) if where == "references" else "a\ud800b"
    lora = LoRA({Target("w"): LowRank(torch.ones(2, 3), torch.ones(6, 2))}, **said)
    again = load(save(lora, tmp_path / "a.safetensors"))
    assert (again.predictor, again.references, again.base_model) == tuple(said.values())


def test_paths_and_names_that_cannot_be_written_are_refused_in_one_line(tmp_path):
    lora = from_state_dict(pair())
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for name in ("n" * 300, "a\0b"):
        with pytest.raises(I2LError, match="cannot save ") as error:
            save(lora, tmp_path / name)
        assert str(error.value).isprintable()
    for name in ("n" * 300, "a\0b", "self"):
        with pytest.raises(I2LError, match="is not a whole safetensors file") as error:
            load(tmp_path / name)
        assert str(error.value).isprintable()
    for opened in (load, read_header):
        with pytest.raises(I2LError, match=r"the path of the file is not UTF-8 .*; rename the file"):
            opened(tmp_path / "\ud800")
        with pytest.raises(I2LError, match="nnn"):
            opened(tmp_path / ("n" * 300))
        with pytest.raises(I2LError, match="self"):
            opened(tmp_path / "self")
    named = LoRA({Target("a\ud800"): LowRank(torch.ones(2, 3), torch.ones(6, 2))})
    with pytest.raises(I2LError, match=r"names of layers must be UTF-8, got .*a\\ud800"):
        save(named, tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["unet_" * 4000 + "x", "lora_unet_" * 400 + "1_" * 4000, "1_" * 8000])
def test_a_long_name_is_looked_up_in_a_few_steps(name, monkeypatch):
    asked = []
    number = names._NUMBER
    monkeypatch.setattr(
        names, "_NUMBER", SimpleNamespace(finditer=lambda text: asked.append(text) or number.finditer(text))
    )
    assert all(names.find(one, name) is None for one in ARCHITECTURES)
    assert sum(map(len, asked)) < 100_000
