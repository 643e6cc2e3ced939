"""The file of what a template made for both sides of CFG."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.kv_caches.cache import KVCache
from i2l.i2l_core.kv_caches.sides import METADATA, Sides, is_cache_file, load_sides, save_sides


def cache(
    seed: int = 0, tokens: int = 3, names: tuple[str, ...] = ("double_0", "single_1"), heads: int = 2
) -> KVCache:
    gen = torch.Generator().manual_seed(seed)
    shape = (1, tokens, heads, 8)
    return KVCache(
        {name: (torch.randn(shape, generator=gen), torch.randn(shape, generator=gen)) for name in names},
        f"made {seed}",
    )


def same(one: KVCache | None, two: KVCache | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.blocks.keys() == two.blocks.keys() and all(
        torch.equal(a, b) and a.dtype == b.dtype
        for name in one.blocks
        for a, b in zip(one.blocks[name], two.blocks[name], strict=True)
    )


K = torch.zeros(1, 3, 2, 8)


@pytest.mark.parametrize("kind", ["both", "shared", "positive", "negative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_and_loaded(tmp_path: Path, kind: str, dtype: torch.dtype):
    one, two = (
        KVCache({name: (k.to(dtype), v.to(dtype)) for name, (k, v) in cache(seed).blocks.items()})
        for seed in (0, 1)
    )
    sides = {"both": (one, two), "shared": (one, one), "positive": (one, None), "negative": (None, two)}[kind]
    path = save_sides(Sides(sides[0], sides[1], "ink: value 0.7"), tmp_path / "new" / "a.safetensors")
    found = load_sides(path)
    assert found.made_by == "ink: value 0.7"
    assert same(found.positive, sides[0])
    assert same(found.negative, sides[1])
    assert (found.positive is found.negative) is (kind == "shared")
    again = save_sides(Sides(sides[0], sides[1], ""), path)
    assert again.name == "a_00002.safetensors"
    assert same(load_sides(path).positive, sides[0])


def test_nothing_to_save(tmp_path: Path):
    with pytest.raises(I2LError, match="ink made no cache that could be saved"):
        save_sides(Sides(None, None, "ink"), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def rewritten(tmp_path: Path, change, about=None) -> Path:
    path = save_sides(Sides(cache(0), cache(1), "ink"), tmp_path / "a.safetensors")
    tensors = load_file(path)
    change(tensors)
    said = json.dumps({"version": 1, "made_by": "ink", "shared": False} | (about or {}))
    save_file(tensors, path, {METADATA: said})
    return path


def _set(name: str, value):
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "about", "message"),
    [
        (lambda t: t.pop("positive.double_0.v"), None, "block double_0 lacks its keys or its values"),
        (
            _set("positive.double_0.x", K),
            None,
            "its tensors are not those of a template cache: positive.double_0.x",
        ),
        (_set("other", K), None, "its tensors are not those of a template cache: other"),
        (_set("negative.single_1.k", torch.full((1, 3, 2, 8), torch.nan)), None, "single_1, keys, holds NaN"),
        (_set("negative.single_1.k", torch.zeros(1, 3, 2, 7)), None, "single_1 must be two tensors"),
        (lambda t: t.clear(), None, "it holds no keys and values"),
        (lambda t: None, {"shared": True}, "it says that both sides are equal, but it does not hold exactly"),
        (lambda t: None, {"version": 2}, "it has version 2, known is 1; update ComfyUI-i2L"),
        (lambda t: None, {"shared": 3}, "its metadata i2l_kv_cache is not valid"),
        (lambda t: None, {"more": 3}, "unknown entries: more"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, change, about, message: str):
    path = rewritten(tmp_path, change, about)
    with pytest.raises(I2LError) as caught:
        load_sides(path)
    assert str(caught.value).startswith("a.safetensors: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short(tmp_path: Path):
    path = save_sides(Sides(cache(0), None, "ink"), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(I2LError, match=r"a\.safetensors: expected a template cache, but it is truncated"):
        load_sides(path)
    assert is_cache_file({METADATA: ""})
    assert not is_cache_file({"x": ""})
