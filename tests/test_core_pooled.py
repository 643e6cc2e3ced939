"""Encoder files of i2L version 1: recognised by shapes, read strictly and without a copy, kept small in float8."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_encoders import TINY, save_encoder, tiny_tensors

from i2l.i2l_core.encoders import DINOV3, KINDS, SIGLIP2, PooledConfig, load_pooled, peek_pooled, recognise
from i2l.i2l_core.encoders.casting import FLOAT8, quantise
from i2l.i2l_core.encoders.v1 import EncoderKind
from i2l.i2l_core.errors import I2LError

kinds = pytest.mark.parametrize("kind", [SIGLIP2, DINOV3])


def pictures() -> list[torch.Tensor]:
    return [torch.rand(height, width, 3) for height, width in ((60, 40), (33, 90))]


@kinds
@pytest.mark.parametrize("change", [{}, {"blocks": 3}, {"mlp": 40}, {"patch": 32}, {"width": 384}])
def test_sizes_are_read_from_the_shapes(kind: str, change: dict[str, int]):
    config = replace(TINY[kind], **change)
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_tensors(config).items()}
    assert recognise(shapes) == config


def test_siglip2_sees_pictures_of_the_size_that_its_positions_tell():
    config = replace(TINY[SIGLIP2], side=64)
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_tensors(config).items()}
    assert recognise(shapes) == config


@kinds
def test_what_is_no_such_encoder_is_not_recognised(kind: str):
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_tensors(TINY[kind]).items()}
    assert recognise({}) is None
    assert recognise({f"vision_model.{name}": shape for name, shape in shapes.items()}) is None
    assert recognise({name: (*shape[:-1], 7) for name, shape in shapes.items() if len(shape) == 1}) is None
    assert (
        recognise(
            {**shapes, "embeddings.patch_embedding.weight": (), "embeddings.patch_embeddings.weight": ()}
        )
        is None
    )


def _telling(kind: EncoderKind) -> tuple[str, ...]:
    return kind.mark, kind.patches, f"{kind.block}0.{kind.mlp}", "embeddings.position_embedding.weight"


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([name for kind in KINDS.values() for name in _telling(kind)]),
        st.lists(st.integers(0, 9), max_size=5).map(tuple),
    )
)
def test_no_shape_makes_it_fail(shapes: dict[str, tuple[int, ...]]):
    assert recognise(shapes) is None or isinstance(recognise(shapes), PooledConfig)


@kinds
def test_only_the_header_is_read_to_recognise_a_file(kind: str, tmp_path: Path):
    path = save_encoder(tmp_path / "model.safetensors", TINY[kind])
    assert peek_pooled(path) == TINY[kind]
    assert peek_pooled(tmp_path / "missing.safetensors") is None
    (tmp_path / "page.safetensors").write_text("<html>")
    assert peek_pooled(tmp_path / "page.safetensors") is None


@kinds
def test_weights_stay_mapped_to_the_file(kind: str, tmp_path: Path):
    """Of the type that is asked for, nothing is copied: the process has no more memory of its own."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    config = replace(TINY[kind], width=768, mlp=4096)
    path = save_encoder(tmp_path / "model.safetensors", config, torch.bfloat16)
    load_pooled(path, torch.bfloat16)  # what is imported and built on the way
    before = _own_memory()
    encoder = load_pooled(path, torch.bfloat16)
    assert _own_memory() - before < path.stat().st_size / 4
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@kinds
@torch.no_grad()
def test_files_of_any_float_type_are_converted(kind: str, tmp_path: Path):
    tensors = tiny_tensors(TINY[kind], torch.float16)
    save_file(tensors, tmp_path / "half.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "full.safetensors")
    half, full = (load_pooled(tmp_path / f"{name}.safetensors") for name in ("half", "full"))
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, full.get_parameter(name))
    images = pictures()
    # the weights of the second stay mapped to its file, where they may lie so that products round otherwise
    torch.testing.assert_close(half.encode(images), full.encode(images), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in half.parameters())


@kinds
@torch.no_grad()
def test_a_picture_is_encoded_alike_in_any_company(kind: str, tmp_path: Path):
    encoder = load_pooled(save_encoder(tmp_path / "model.safetensors", TINY[kind]), torch.bfloat16)
    one, other = pictures()
    assert torch.equal(encoder.encode([one, other])[:1], encoder.encode([one]))
    assert torch.equal(encoder.encode([other, one])[1:], encoder.encode([one]))


@kinds
@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_a_missing_tensor_is_named(kind: str, which: str, tmp_path: Path):
    tensors = tiny_tensors(TINY[kind])
    names = [name for name in sorted(tensors) if "mask_token" in name or "norm" in name]
    name = names[{"first": 0, "middle": len(names) // 2, "last": -1}[which]]
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        I2LError, match=rf"^model\.safetensors: .* of {kind} .*: {re.escape(name)} is missing$"
    ):
        load_pooled(tmp_path / "model.safetensors")


@kinds
def test_extra_and_misshapen_tensors_are_named(kind: str, tmp_path: Path):
    path, tensors = tmp_path / "model.safetensors", tiny_tensors(TINY[kind])
    save_file({**tensors, "more.weight": torch.ones(1)}, path)
    with pytest.raises(I2LError, match=r"more\.weight is not expected"):
        load_pooled(path)
    name = next(name for name in tensors if name.endswith("1.bias") or name.endswith("norm1.bias"))
    save_file({**tensors, name: torch.ones(7)}, path)
    with pytest.raises(I2LError, match=rf"{re.escape(name)} expected \(\d+,\), got \(7,\)"):
        load_pooled(path)


@kinds
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused(kind: str, value: float, tmp_path: Path):
    tensors = tiny_tensors(TINY[kind], torch.bfloat16)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        I2LError, match=rf"^model\.safetensors: {re.escape(name)} holds NaN or infinite values"
    ):
        load_pooled(tmp_path / "model.safetensors", torch.bfloat16)


def test_what_is_no_encoder_says_what_it_is(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"blocks.lora_A.weight": torch.ones(1)}, path)
    with pytest.raises(I2LError, match=r"^model\.safetensors: expected a SigLIP2 or DINOv3 .* it is a LoRA"):
        load_pooled(path)
    path.write_bytes(b"<html>")
    with pytest.raises(I2LError, match=r"expected an image encoder, but it is a web page"):
        load_pooled(path)
    save_file({name: tensor.to(torch.int32) for name, tensor in tiny_tensors(TINY[DINOV3]).items()}, path)
    with pytest.raises(I2LError, match=r"must all be F32 or F16 or BF16, got I32"):
        load_pooled(path)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.floats(-20, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_float8_keeps_each_value_to_a_sixteenth(rows: int, columns: int, exponent: float, dtype: torch.dtype):
    gen = torch.Generator().manual_seed(rows * 100 + columns)
    weight = (torch.randn(rows, columns, generator=gen) * 10**exponent).to(dtype)
    weight[0] = 0
    quantised, scale = quantise(weight)
    assert quantised.dtype == FLOAT8
    found = quantised.float() * scale.float()[:, None]
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], torch.zeros(columns))
    largest = weight.float().abs().amax(1, keepdim=True)
    # 3 bits of mantissa, and steps of 2^-9 below 2^-6; bfloat16 rounds scale and quotient once more
    bound = weight.float().abs() * (2**-4 + 2**-7) + largest / 448 * 2**-9
    assert bool(((found - weight.float()).abs() <= bound).all())
