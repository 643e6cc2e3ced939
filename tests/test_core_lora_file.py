"""LoRA files: round trips, what other tools write, hostile input, and saving without harm."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files import atomic as new_file
from i2l.i2l_core.files.atomic import safe_join
from i2l.i2l_core.lora import LoRA, LowRank, Target, to_whole_weights
from i2l.i2l_core.lora_files.file import load, save
from i2l.i2l_core.lora_files.tensors import from_state_dict, to_state_dict

DOWN, UP = "lora_down.weight", "lora_up.weight"


def some_lora(dtype=torch.float32, base_model: str = "z-image") -> LoRA:
    layers = {
        Target("layers.0.attention.out"): LowRank(torch.randn(4, 8), torch.randn(8, 4)).to(dtype=dtype),
        Target("x_embedder"): LowRank(torch.randn(2, 64), torch.randn(8, 2)).to(dtype=dtype),
    }
    return LoRA(layers, base_model=base_model, predictor="ink-1", references=("abc", "def"))


def same(one: LoRA, two: LoRA) -> None:
    assert one.layers.keys() == two.layers.keys()
    for target, layer in one.layers.items():
        assert torch.equal(layer.down, two.layers[target].down)
        assert torch.equal(layer.up, two.layers[target].up)
        assert layer.up.dtype == two.layers[target].up.dtype


def pair(weight: str = "w", k: int = 2, down: str = DOWN, up: str = UP) -> dict[str, torch.Tensor]:
    return {f"{weight}.{down}": torch.randn(k, 3), f"{weight}.{up}": torch.randn(4, k)}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Tensors


def test_state_dict_has_the_names_that_the_host_reads_and_owns_its_tensors():
    big = torch.randn(8, 6)
    lora = LoRA({Target("a"): LowRank(big[:2], big[:, :2]), Target("b"): LowRank(big[:2], big[:, :2])})
    tensors = to_state_dict(lora)
    assert sorted(tensors) == sorted(f"diffusion_model.{w}.{part}" for w in "ab" for part in (DOWN, UP))
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors.values())
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*tensors.values(), big)}
    assert len(storages) == 5
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors.values())


def test_row_targets_must_be_fused_first():
    lora = LoRA({Target("qkv", (4, 4)): LowRank(torch.randn(2, 3), torch.randn(4, 2))})
    with pytest.raises(I2LError, match=r"qkv\[4:8\] covers only rows"):
        to_state_dict(lora)
    same(
        from_state_dict(to_state_dict(to_whole_weights(lora, {"qkv": 12}))),
        to_whole_weights(lora, {"qkv": 12}),
    )


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (DOWN, UP),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_other_spellings(prefix, down, up):
    tensors = pair(f"{prefix}layers.0.w", down=down, up=up)
    (layer,) = from_state_dict(tensors).layers.values()
    assert list(from_state_dict(tensors).layers) == [Target("layers.0.w")]
    assert torch.equal(layer.up, tensors[f"{prefix}layers.0.w.{up}"])


@given(st.integers(1, 8), st.floats(-64, 64))
def test_alpha_is_folded_in(rank, alpha):
    tensors = {**pair(k=rank), "w.alpha": torch.tensor(alpha)}
    (layer,) = from_state_dict(tensors).layers.values()
    expected = tensors[f"w.{UP}"].double() @ tensors[f"w.{DOWN}"].double() * float(torch.tensor(alpha)) / rank
    assert torch.allclose(layer.delta().double(), expected, rtol=1e-5, atol=1e-5)


def test_alpha_on_half_precision_is_folded_in_fp32():
    tensors = {key: value.bfloat16() for key, value in pair(k=3).items()}
    (layer,) = from_state_dict({**tensors, "w.alpha": torch.tensor(1.0)}).layers.values()
    assert torch.equal(layer.up, tensors[f"w.{UP}"].float() * (1 / 3))
    (plain,) = from_state_dict({**tensors, "w.alpha": torch.tensor(3.0)}).layers.values()
    assert plain.up.dtype is torch.bfloat16


def bad(**changes) -> dict:
    return {**pair(), **{key.replace("__", "."): value for key, value in changes.items()}}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no LoRA layer"),
        (bad(w__lora_up__weight=torch.zeros(4, 3)), "w: the ranks .* differ"),
        (bad(w__lora_up__weight=torch.zeros(4)), "w: .*needs matrices"),
        (bad(w__lora_up__weight=torch.zeros(4, 2, 1)), "w is .*of a convolution"),
        (bad(w__lora_up__weight=torch.zeros(0, 2)), "w: .*empty"),
        (bad(w__lora_up__weight=torch.zeros(4, 2).long()), "w holds torch.int64"),
        (bad(w__lora_up__weight="text"), "w holds str"),
        (bad(w__lora_up__weight=torch.full((4, 2), torch.nan)), "w holds NaN"),
        (bad(w__lora_down__weight=torch.full((2, 3), torch.inf)), "w holds NaN or infinite"),
        (bad(w__alpha=torch.tensor(torch.nan)), "alpha of w must be one finite number"),
        (bad(w__alpha=torch.zeros(2)), "alpha of w must be one finite number"),
        (bad(v__lora_up__weight=torch.zeros(4, 2)), "1 layers lack their down or up tensor: v"),
        (bad(v__alpha=torch.tensor(1.0)), "lack their down or up tensor: v"),
        (bad(w__lora_A__weight=torch.zeros(2, 3)), "w has more than one down tensor"),
        (pair(up="lora_B.weight"), "1 layers mix the names of two formats .*: w; export it again"),
        (bad(w__lora_magnitude_vector=torch.zeros(4)), "it holds DoRA, and only ComfyUI's own loader"),
        (bad(w__dora_scale=torch.zeros(4)), "it holds DoRA, and only ComfyUI's own loader"),
        (bad(w__lokr_w1=torch.zeros(4)), "it holds LoKr, and only ComfyUI's own loader"),
        (bad(norm__diff=torch.zeros(4)), "full weight differences"),
        ({".lora_up.weight": torch.zeros(4, 2)}, "not LoRA layers"),
        ({3: torch.zeros(4, 2)}, "not LoRA layers"),
    ],
)
def test_what_is_no_lora_is_named(tensors, message):
    with pytest.raises(I2LError, match=message) as error:
        from_state_dict(tensors, source="ink.safetensors")
    assert str(error.value).startswith("ink.safetensors")
    assert "\n" not in str(error.value)


def test_errors_name_five_keys_at_most():
    with pytest.raises(I2LError) as error:
        from_state_dict({f"model.block{i}.weight": torch.zeros(1) for i in range(1000)})
    assert "1000 of 1000 tensors" in str(error.value)
    assert [f"block{i}" in str(error.value) for i in range(6)] == [True] * 5 + [False]
    assert len(str(error.value)) < 500


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_round_trips_exactly(tmp_path, dtype):
    lora = some_lora(dtype)
    path = save(lora, tmp_path / "ink.safetensors")
    back = load(path)
    same(lora, back)
    assert (back.base_model, back.predictor, back.references) == ("z-image", "ink-1", ("abc", "def"))
    assert files(tmp_path) == ["ink.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_metadata_is_what_lora_managers_read(tmp_path):
    path = save(some_lora(), tmp_path / "ink.safetensors", {"modelspec.author": "me", "i2l": "not this"})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "ZImageBase"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "ink"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "Z-Image/lora"
    assert metadata["modelspec.implementation"].startswith("https://")
    assert metadata["modelspec.date"][:2] == "20"
    assert metadata["modelspec.author"] == "me"
    about = json.loads(metadata["i2l"])
    assert about["base_model"] == {"id": "z-image", "title": "Z-Image"}
    assert (about["format"], about["version"], about["rank"]) == ("i2l-lora", 1, 4)
    assert (about["predictor"], about["references"]) == ("ink-1", ["abc", "def"])


def test_an_unknown_base_model_claims_nothing(tmp_path):
    path = save(some_lora(base_model=""), tmp_path / "ink.safetensors")
    with safe_open(path, "pt") as file:
        assert not {"ss_base_model_version", "modelspec.architecture"} & file.metadata().keys()
    assert load(path).base_model == ""


def test_metadata_must_be_text(tmp_path):
    with pytest.raises(I2LError, match="must be text, got other values for: steps"):
        save(some_lora(), tmp_path / "ink.safetensors", {"steps": 3})  # pyright: ignore[reportArgumentType]
    assert files(tmp_path) == []


def test_nan_is_not_saved(tmp_path):
    lora = LoRA({Target("a"): LowRank(torch.ones(1, 2), torch.full((3, 1), torch.nan))})
    with pytest.raises(I2LError, match="layer of a holds NaN"):
        save(lora, tmp_path / "sub" / "ink.safetensors")
    assert files(tmp_path) == []


def header(size: int, text: bytes) -> bytes:
    return struct.pack("<Q", size) + text


def tensor_header(**entry) -> bytes:
    text = json.dumps(
        {"w.lora_up.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **entry}}
    )
    return header(len(text), text.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95pickle",
        b"PK\x03\x04" + b"\0" * 100,
        header(2**63, b"{}"),
        header(2**33, b"{}"),
        header(500, b"{}"),
        header(2, b"[]"),
        header(4, b"\xff\xfe\xfd\xfc"),
        tensor_header(),
        tensor_header(data_offsets=[0, 2**62]) + bytes(16),
        tensor_header(data_offsets=[16, 0]) + bytes(16),
        tensor_header(shape=[2**40, 2**40]) + bytes(16),
        tensor_header(dtype="F999") + bytes(16),
        tensor_header(data_offsets=[0, 8]) + bytes(16),
        tensor_header(shape=[-2, 2]) + bytes(16),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "ink.safetensors"
    path.write_bytes(content)
    with pytest.raises(I2LError, match=r"^ink\.safetensors") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    whole = save(some_lora(), tmp_path / "whole.safetensors").read_bytes()
    for size in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        path = tmp_path / "ink.safetensors"
        path.write_bytes(whole[:size])
        with pytest.raises(I2LError, match=r"^ink\.safetensors"):
            load(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(I2LError, match=path.name):
            load(path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", "metadata is damaged"),
        ("[" * 100_000, "metadata is damaged"),
        ("[]", "expected a LoRA file"),
        ('{"format": "i2l-predictor", "version": 1}', "expected a LoRA file .* got 'i2l-predictor'"),
        ('{"format": "i2l-lora", "version": 99}', "version 99 is not known"),
        ('{"format": "i2l-lora", "version": 1}', "base model, predictor or references"),
    ],
)
def test_metadata_of_another_kind_is_refused(tmp_path, about, message):
    path = tmp_path / "ink.safetensors"
    save_file(to_state_dict(some_lora()), path, {"i2l": about})
    with pytest.raises(I2LError, match=message) as error:
        load(path)
    assert str(error.value).startswith("ink.safetensors")


def test_files_of_other_tools_load(tmp_path):
    save_file(pair("diffusion_model.w"), tmp_path / "other.safetensors", {"format": "pt"})
    assert load(tmp_path / "other.safetensors").base_model == ""
    save_file(pair("w"), tmp_path / "bare.safetensors")
    assert list(load(tmp_path / "bare.safetensors").layers) == [Target("w")]


# Saving without harm


def test_saving_never_overwrites(tmp_path):
    (tmp_path / "ink.safetensors").write_bytes(b"precious")
    (tmp_path / "ink_00002.safetensors").symlink_to(tmp_path / "nowhere")
    paths = [save(some_lora(), tmp_path / "ink.safetensors") for _ in range(2)]
    assert [path.name for path in paths] == ["ink_00003.safetensors", "ink_00004.safetensors"]
    assert (tmp_path / "ink.safetensors").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    assert len(files(tmp_path)) == 4


@pytest.mark.parametrize("hard_links", [True, False])
def test_two_savers_at_once_get_two_names(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", _no_links)
    lora, start, paths = some_lora(), threading.Barrier(8), []

    def run() -> None:
        start.wait()
        paths.append(save(lora, tmp_path / "ink.safetensors"))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == len(files(tmp_path)) == 8
    for path in paths:
        same(load(path), lora)


def _no_links(*args, **kwargs):
    raise OSError(errno.EOPNOTSUPP, "no hard links here")


@pytest.mark.parametrize("step", ["flush", "link", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_stays_when_saving_fails(tmp_path, monkeypatch, step, error):
    def fail(*args, **kwargs):
        raise error

    if step == "flush":
        monkeypatch.setattr(os, "fsync", fail)
    elif step == "link":
        monkeypatch.setattr(os, "link", fail)
    else:
        monkeypatch.setattr(os, "link", _no_links)
        monkeypatch.setattr(os, "replace", fail)
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    expected = (I2LError, KeyboardInterrupt)
    with pytest.raises(expected) as caught:
        save(some_lora(), tmp_path / "a" / "b" / "ink.safetensors")
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
        assert "ink.safetensors" in str(caught.value)
    assert files(tmp_path) == ["old.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_disk_that_takes_only_half_of_the_file(tmp_path):
    """The system itself refuses in the middle, as a full disk does."""
    import resource

    lora = LoRA({Target("a"): LowRank(torch.randn(64, 256), torch.randn(256, 64))})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(I2LError, match=r"cannot save .* too large") as error:
            save(lora, tmp_path / "ink.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(I2LError, match="cannot save"):
        save(some_lora(), tmp_path / "file" / "ink.safetensors")
    assert files(tmp_path) == ["file"]


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ink", "ink.safetensors"),
        (" ink.safetensors ", "ink.safetensors"),
        ("style/ink", "style/ink.safetensors"),
        ("ink v1.5", "ink v1.5.safetensors"),
        ("水墨 ✒", "水墨 ✒.safetensors"),
        (".hidden", ".hidden.safetensors"),
        ("console", "console.safetensors"),
        ("~", "~.safetensors"),
    ],
)
def test_plain_names_are_taken(tmp_path, name, expected):
    assert safe_join(tmp_path, name) == tmp_path.resolve() / expected
    assert files(tmp_path) == []


BAD_NAMES = [
    *(
        "",
        "   ",
        ".",
        "..",
        ".safetensors",
        "/",
        "a/",
        "a//b",
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a/..",
        "./a",
    ),
    *(
        "C:ink",
        "C:\\ink",
        "\\\\server\\share",
        "a\\b",
        "..\\up",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a?b",
        "a*",
        'a"b',
        "a|b",
    ),
    *(
        "<a>",
        "CON",
        "con.txt",
        "nul",
        "NUL.safetensors",
        "a/COM1",
        "lpt9.x",
        "COM¹",
        "CONIN$",
        "aux .b",
        "a.",
    ),
    *("a ./b", "a./b", "a/ b", "a .safetensors", "x" * 201, "水" * 70, "\ud800"),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=[ascii(name)[:20] for name in BAD_NAMES])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(I2LError, match="cannot save under the name") as error:
        safe_join(tmp_path, name)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert files(tmp_path) == []


@given(st.text(st.sampled_from("./\\:~ aC\0é"), max_size=12))
def test_no_name_leaves_the_folder(name):
    folder = Path("/tmp/nowhere/loras")
    try:
        path = safe_join(folder, name)
    except I2LError:
        return
    assert path.resolve().is_relative_to(folder)
    assert path.suffix == ".safetensors"


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(I2LError, match=r"cannot save under the name 'link/ink': .*choose another folder"):
        safe_join(tmp_path, "link/ink")


def test_a_link_does_not_lead_out(tmp_path):
    inside, outside = tmp_path / "loras", tmp_path / "else"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    with pytest.raises(I2LError, match="a link leads out"):
        safe_join(inside, "link/ink")
    (tmp_path / "moved").symlink_to(inside)  # but the loras folder itself may be a link
    assert safe_join(tmp_path / "moved", "ink") == inside / "ink.safetensors"


def test_numbering_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(new_file, "_claim", lambda temporary, path: False)
    with pytest.raises(I2LError, match="no free name is left"):
        save(some_lora(), tmp_path / "ink.safetensors")
    assert files(tmp_path) == []
