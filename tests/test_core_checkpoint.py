"""Predictor files: an exact round trip, and a clear refusal of everything that is not one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from i2l.i2l_core.encoders import NAFLEX, SQUARE, EncoderConfig, VisionEncoder
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.query import file as checkpoint
from i2l.i2l_core.predictors.query.config import LayerSpec, QueryConfig
from i2l.i2l_core.predictors.query.file import check_header, load_predictor, save_predictor
from i2l.i2l_core.predictors.query.network import QueryNetwork

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}
ENCODERS = {
    "square": EncoderConfig(SQUARE, {**VISION, "image_size": 16}, image_size=16),
    "naflex": EncoderConfig(NAFLEX, {**VISION, "num_patches": 4}, max_patches=6, resample="bilinear"),
}
CONFIG = QueryConfig(
    hidden=24,
    blocks=2,
    heads=3,
    code=5,
    rank=2,
    token_dim=16,
    layers=(
        LayerSpec("layers.0.attention.qkv", (0, 12), 12, 12),
        LayerSpec("layers.0.attention.qkv", (12, 12), 12, 12),
        LayerSpec("layers.0.w1", None, 12, 20),
    ),
)
META = {"base_model": {"id": "i2l-tiny"}, "about": {"title": "Tiny Ω", "steps": 3}}


def made(encoder: str = "square") -> tuple[QueryNetwork, VisionEncoder]:
    predictor = QueryNetwork(CONFIG)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    return predictor, VisionEncoder(ENCODERS[encoder])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "tiny.safetensors"
    save_predictor(path, *made(), META)
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, dict(file.metadata() or {})


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_rebuilds_everything_exactly(tmp_path: Path, encoder: str, dtype: torch.dtype):
    predictor, vision = made(encoder)
    predictor.to(dtype)
    vision.to(dtype)
    save_predictor(tmp_path / "p.safetensors", predictor, vision, META)
    loaded = load_predictor(tmp_path / "p.safetensors")

    assert (loaded.config, loaded.encoder.config) == (CONFIG, ENCODERS[encoder])
    assert (loaded.meta, loaded.base_model, loaded.name) == (META, "i2l-tiny", "p")
    for before, after in ((predictor, loaded.predictor), (vision.model, loaded.encoder.model)):
        assert before.state_dict().keys() == after.state_dict().keys()
        for name, tensor in after.state_dict().items():
            assert tensor.dtype == dtype
            assert not tensor.is_meta
            assert torch.equal(tensor, before.state_dict()[name]), name

    images = [torch.rand(20, 30, 3), torch.rand(16, 16, 3)]
    with torch.no_grad():
        expected = predictor(vision.encode(images)).lora()
        found = loaded.predictor(loaded.encoder.encode(images)).lora()
    for target, layer in expected.layers.items():
        assert torch.equal(layer.down, found.layers[target].down)
        assert torch.equal(layer.up, found.layers[target].up)


def test_training_goes_on_from_a_loaded_predictor_while_its_encoder_is_frozen(path: Path):
    loaded = load_predictor(path)
    assert all(parameter.requires_grad for parameter in loaded.predictor.parameters())
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())


def test_a_later_change_of_the_weights_does_not_reach_the_file(path: Path):
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_predictor(path).predictor.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_the_header_is_read_alone(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "check_finite", lambda *_: pytest.fail("a tensor was read"))
    config, _, meta = check_header(path)
    assert meta["base_model"] == {"id": "i2l-tiny"}
    assert (config.rank, config.n_queries, config.hidden) == (2, 12, 24)


def test_loading_under_the_hosts_operations(host: object, path: Path):
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.ops

    loaded = load_predictor(path, operations=comfy.ops.manual_cast)
    tokens = torch.randn(1, 8, 16)
    patcher = comfy.model_patcher.CoreModelPatcher(
        loaded.predictor, mm.get_torch_device(), mm.unet_offload_device()
    )
    mm.load_models_gpu([patcher])
    plain = load_predictor(path).predictor
    with torch.no_grad():
        assert torch.equal(loaded.predictor(tokens).rows[0], plain(tokens).rows[0])
        half = loaded.predictor(tokens.bfloat16()).rows[0]  # cast on the way, weights stay
    assert half.dtype == torch.bfloat16
    assert loaded.predictor.queries.dtype == torch.float32


# saving


def test_saving_replaces_an_older_file_and_leaves_nothing_else(path: Path):
    before = path.read_bytes()
    save_predictor(path, *made(), META)
    assert path.read_bytes() != before
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_old_file_and_no_half_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()

    def full(tensors: object, where: Path, header: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(I2LError, match="No space left on device"):
        save_predictor(path, *made(), META)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path):
    predictor, encoder = made()
    with torch.no_grad():
        predictor.get_parameter("heads.B_12.alpha")[1] = float("nan")
    with pytest.raises(I2LError, match=r"predictor\.heads\.B_12\.alpha holds NaN"):
        save_predictor(tmp_path / "p.safetensors", predictor, encoder, META)
    wide = VisionEncoder(
        EncoderConfig(SQUARE, {**VISION, "hidden_size": 18, "image_size": 16}, image_size=16)
    )
    with pytest.raises(I2LError, match="tokens of width 16, its encoder gives 18"):
        save_predictor(tmp_path / "p.safetensors", made()[0], wide, META)
    with pytest.raises(I2LError, match="id of a base model"):
        save_predictor(tmp_path / "p.safetensors", *made(), {"base_model": {}})
    assert os.listdir(tmp_path) == []


# files with other tensors or metadata


def rewrite(
    path: Path, tensors: Callable[[dict], None] | None = None, about: Callable[[dict], Any] | None = None
):
    weights, metadata = read(path)
    if tensors:
        tensors(weights)
    if about:
        content = json.loads(metadata["i2l"])
        changed = about(content)
        metadata["i2l"] = changed if isinstance(changed, str) else json.dumps(content)
    save_file(weights, path, metadata)


def refused(path: Path, message: str, read: Callable[[Path], object] = load_predictor) -> None:
    with pytest.raises(I2LError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path.name}: ")
    assert "\n" not in str(caught.value)


def poison(value: float, name: str) -> Callable[[dict], None]:
    return lambda weights: weights[name].view(-1)[-1:].fill_(value)


def drop(count: int) -> Callable[[dict], None]:
    def change(weights: dict) -> None:
        for name in sorted(weights)[:count]:
            del weights[name]

    return change


TENSORS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "missing": (lambda w: w.pop("predictor.queries"), r"predictor\.queries is missing"),
    "extra": (lambda w: w.update(x=torch.zeros(1)), r": x is not expected"),
    "extra part": (
        lambda w: w.update({"encoder.head.probe": torch.zeros(1)}),
        r"encoder\.head\.probe is not expected",
    ),
    "shape": (
        lambda w: w.update({"predictor.queries": torch.zeros(24, 12)}),
        r"predictor\.queries expected \(12, 24\), got \(24, 12\)",
    ),
    "eight": (drop(8), r"(\S+ is missing, ){4}\S+ is missing and 3 more$"),
    "nan": (poison(float("nan"), "predictor.heads.A_12.expand"), r"predictor\.heads\.A_12\.expand holds NaN"),
    "inf": (
        poison(float("inf"), "encoder.post_layernorm.bias"),
        r"encoder\.post_layernorm\.bias holds NaN or inf",
    ),
    "mixed types": (
        lambda w: w.update({"predictor.queries": w["predictor.queries"].half()}),
        r"predictor\.\* tensors must all be F32 or F16 or BF16, got F16, F32",
    ),
    "integers": (
        lambda w: w.update({name: t.int() for name, t in w.items() if name.startswith("encoder.")}),
        r"encoder\.\* tensors must all be F32 or F16 or BF16, got I32",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_other_tensors_are_refused_by_name(path: Path, case: str):
    change, message = TENSORS[case]
    rewrite(path, tensors=change)
    refused(path, message)


def put(*keys: Any) -> Callable[[dict], None]:
    """put("predictor", "hidden", 3): the entry at these keys becomes the last one"""

    def change(about: dict) -> None:
        *way, last, value = keys
        for key in way:
            about = about[key]
        about[last] = value

    return change


METADATA: dict[str, tuple[Callable[[dict], Any], str]] = {
    "no JSON": (lambda a: '{"format": ', "metadata is damaged"),
    "no object": (lambda a: "[1, 2]", "metadata must be a JSON object, got list"),
    "deep": (lambda a: "[" * 100_000, "metadata"),
    "format": (put("format", "other"), "expected the format i2l-predictor, got 'other'"),
    "a LoRA of ours": (put("format", "i2l-lora"), "it is a LoRA; put it into models/loras"),
    "newer": (put("version", 2), r"version 2 is not known \(known: 1\); update ComfyUI-i2L"),
    "version type": (put("version", True), "version True is not known"),
    "no version": (lambda a: a.pop("version") and None, "version None is not known"),
    "family": (put("family", "gan"), r"family 'gan' is not known \(known: query\)"),
    "no predictor": (lambda a: a.pop("predictor") and None, "metadata lacks predictor"),
    "unknown entry": (put("code", "x"), "metadata has unknown entries: code"),
    "base model": (put("base_model", "tiny"), "base_model must be a JSON object with the id"),
    "about": (put("about", [1]), "about must be a JSON object, got list"),
    "config type": (put("predictor", 3), "predictor must be a JSON object, got int"),
    "config entry": (put("predictor", "depth", 3), "predictor has unknown entries: depth"),
    "zero": (put("predictor", "blocks", 0), "predictor blocks must be a whole number from 1"),
    "huge": (put("predictor", "hidden", 2**40), "predictor hidden must be a whole number from 1 to 16384"),
    "beyond floats": (put("predictor", "rank", 10**300), "got a number of more than 64 bits"),
    "beyond Python": (
        lambda a: json.dumps(a).replace('"rank": 2', '"rank": ' + "9" * 9999),
        "metadata is damaged",
    ),
    "text": (put("predictor", "hidden", "24"), "predictor hidden must be a whole number"),
    "infinite": (put("predictor", "alpha", float("inf")), "predictor alpha must be a number above 0"),
    "ratio": (put("predictor", "mlp_ratio", float("nan")), "predictor mlp_ratio must be a number"),
    "heads": (put("predictor", "heads", 5), "hidden 24 is not a multiple of its 5 heads"),
    "no layers": (put("predictor", "layers", []), "adapts 1 to 8192 layers, got 0"),
    "layers type": (put("predictor", "layers", "all"), "layers must be a list, got str"),
    "layer": (
        put("predictor", "layers", 0, {"weight": "w"}),
        r"predictor layers\[0\] lacks d_in, d_out, rows",
    ),
    "rows": (put("predictor", "layers", 0, "rows", [0, 99]), "99 rows, but d_out is 12"),
    "rows type": (
        put("predictor", "layers", 0, "rows", [0.5, 12]),
        r"rows of layers\.0\.attention\.qkv must be",
    ),
    "rows text": (put("predictor", "layers", 0, "rows", "ab"), r"layers\[0\] rows must be a pair or null"),
    "overlap": (
        put("predictor", "layers", 1, "rows", [11, 12]),
        r"adapted layers overlap: layers\.0\.attention\.qkv\[0:12\] and",
    ),
    "widths": (put("predictor", "layers", 1, "d_in", 13), "d_in differs inside one weight"),
    "encoder": (put("encoder", "kind", "vit"), "encoder kind must be"),
    "token width": (put("predictor", "token_dim", 20), "tokens of width 20, its encoder gives 16"),
    # a network that is allowed, but is not the one in the file: nothing of its size is allocated
    "other": (
        put("predictor", "hidden", 12000),
        r"predictor\.queries expected \(12, 12000\), got \(12, 24\)",
    ),
    "deeper": (
        put("encoder", "config", "num_hidden_layers", 2),
        r"encoder\.encoder\.layers\.1\.\S+ is missing",
    ),
}


@pytest.mark.parametrize("case", METADATA)
def test_other_metadata_is_refused_by_name(path: Path, case: str):
    change, message = METADATA[case]
    rewrite(path, about=change)
    refused(path, message)


def weights(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


OTHERS = {
    "LoRA": (
        weights("diffusion_model.layers.0.w.lora_down.weight"),
        None,
        "it is a LoRA; put it into models/loras",
    ),
    "LoRA by metadata": (weights("x"), {"ss_network_module": "networks.lora"}, "put it into models/loras"),
    "peft": (weights("transformer.a.lora_A.default.weight"), None, "put it into models/loras"),
    "checkpoint": (
        weights("model.diffusion_model.x", "first_stage_model.y"),
        None,
        "put it into models/checkpoints",
    ),
    "flux": (weights("double_blocks.0.img_attn.qkv.weight"), None, "put it into models/diffusion_models"),
    "z-image": (weights("layers.0.attention.qkv.weight"), None, "put it into models/diffusion_models"),
    "encoder": (
        weights("vision_model.embeddings.patch_embedding.weight"),
        None,
        "put it into models/clip_vision",
    ),
    "new encoder": (weights("embeddings.patch_embedding.weight"), None, "put it into models/clip_vision"),
    "text encoder": (weights("model.layers.0.mlp.up_proj.weight"), None, "put it into models/text_encoders"),
    "VAE": (weights("decoder.conv_in.weight"), None, "put it into models/vae"),
    "version 1": (weights("layers_lora.blocks.0.layers.0.proj_a.proj_in.weight"), None, "DiffSynth-Studio"),
    "stripped": (weights("predictor.queries", "encoder.x"), None, "no i2l metadata"),
    "unknown": (weights("x"), {"format": "pt"}, "no i2l metadata and no known tensors"),
    "empty": ({}, None, "no i2l metadata"),
}


@pytest.mark.parametrize("reader", [load_predictor, check_header])
@pytest.mark.parametrize("case", OTHERS)
def test_another_kind_of_file_is_recognised(tmp_path: Path, case: str, reader: Callable):
    tensors, metadata, message = OTHERS[case]
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    refused(tmp_path / "other.safetensors", f"expected a predictor file, but .*{message}", reader)


def header(size: int, content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", size) + content + data


ONE = b'{"predictor.queries":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
BYTES = {
    "empty": (b"", "truncated or not a safetensors file"),
    "short": (b"\x10\x00", "truncated or not a safetensors file"),
    "header too long": (header(1000, b"{}"), "truncated"),
    "header beyond memory": (header(2**63, b"{}"), "truncated"),
    "header no JSON": (header(4, b"abcd"), "truncated or not a safetensors"),
    "data missing": (header(len(ONE), ONE, b"1234"), "truncated"),
    "shape lies": (
        header(len(ONE), ONE.replace(b"[2]", b"[9]"), b"12345678"),
        "truncated or not a safetensors",
    ),
    "pickle": (b"\x80\x02}q\x00.", "a pickle, which is never read"),
    "checkpoint": (b"PK\x03\x04archive/data.pkl", "never read; get the .safetensors form"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
}


@pytest.mark.parametrize("reader", [load_predictor, check_header])
@pytest.mark.parametrize("case", BYTES)
def test_a_damaged_file_is_refused(tmp_path: Path, case: str, reader: Callable):
    content, message = BYTES[case]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    refused(path, message, reader)
    assert path.read_bytes() == content


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(path: Path, part: float):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    refused(path, "truncated")


def test_no_file_and_a_folder(tmp_path: Path):
    refused(tmp_path / "none.safetensors", "there is no such file")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors", "it is not a file")


def test_a_pickle_under_our_name_is_never_executed(tmp_path: Path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    refused(path, "never read")
    assert not (tmp_path / "executed").exists()
