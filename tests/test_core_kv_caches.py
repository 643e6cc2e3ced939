"""Caches of keys and values: what is refused, merging, files, and templates told apart by their weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kv_templates import BLOCKS, dit_file, value_file, value_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.kv_caches.cache import KVCache, merge
from i2l.i2l_core.kv_caches.dit import DitTemplate, host_name
from i2l.i2l_core.kv_caches.kinds import StaticTemplate, recognise_template
from i2l.i2l_core.kv_caches.static import load_cache
from i2l.i2l_core.kv_caches.value import ValueTemplate


def part(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cache(seed: int = 0, tokens: int = 3, names=BLOCKS, made_by: str = "", **options) -> KVCache:
    shape = (1, tokens, options.pop("heads", 2), options.pop("width", 8))
    return KVCache(
        {
            n: (part(*shape, seed=2 * seed, **options), part(*shape, seed=2 * seed + 1, **options))
            for n in names
        },
        made_by,
    )


def equal(one: KVCache, two: KVCache) -> bool:
    return one.blocks.keys() == two.blocks.keys() and all(
        torch.equal(a, b) and a.dtype == b.dtype
        for name in one.blocks
        for a, b in zip(one.blocks[name], two.blocks[name], strict=True)
    )


def refusal(action: Callable[[], Any]) -> str:
    """The message, which is one sentence."""
    with pytest.raises(I2LError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"[^.]\. ", message)
    assert len(message) < 600
    return message


K = part(1, 3, 2, 8)
NAN, INFINITE = K.clone(), K.clone()
NAN[0, 1, 1, 3] = math.nan
INFINITE[0, 2, 0, 7] = -math.inf
NAN_8_BITS = K.to(torch.float8_e4m3fn)
NAN_8_BITS.view(torch.uint8)[0, 0, 0, 0] = 0x7F


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({}, "holds no block"),
        ({"double_": (K, K)}, "'double_'"),
        ({"double_01": (K, K)}, "'double_01'"),
        ({"triple_0": (K, K)}, "'triple_0'"),
        ({"double_0\n": (K, K)}, "expected blocks named double_0"),
        ({3: (K, K)}, "got 3"),
        ({f"x{i}" * 99: (K, K) for i in range(50)}, "and 45 more"),
        ({"double_0": (K,)}, "expected keys and values for double_0, got tuple"),
        ({"double_0": (K, [1.0])}, "expected keys and values for double_0"),
        ({"double_0": (K[0], K[0])}, "keys (3, 2, 8), values (3, 2, 8)"),
        ({"double_0": (K, K[:, :2])}, "keys (1, 3, 2, 8), values (1, 2, 2, 8)"),
        ({"double_0": (K.expand(2, -1, -1, -1), K.expand(2, -1, -1, -1))}, "(2, 3, 2, 8)"),
        ({"double_0": (K[:, :0], K[:, :0])}, "(1, 0, 2, 8)"),
        ({"double_0": (K, K.half())}, "got torch.float32 and torch.float16"),
        ({"double_0": (K.int(), K.int())}, "floating point type, got torch.int32"),
        ({"double_0": (NAN, K)}, "double_0, keys, holds NaN"),
        ({"single_7": (K, INFINITE)}, "single_7, values, holds NaN"),
        ({"double_0": (NAN_8_BITS, NAN_8_BITS)}, "double_0, keys, holds NaN"),
        ({"double_0": (K, K), "single_0": (K.half(), K.half())}, "its blocks differ in heads, head width or type"),
        ({"double_0": (K, K), "single_0": (K[..., :4], K[..., :4])}, "2 x 4 torch.float32, 2 x 8 torch.float32"),
        ({"double_0": (K, K), "single_0": (K[:, :, :1], K[:, :, :1])}, "1 x 8"),
    ],
)  # fmt: skip
def test_what_is_no_cache_is_refused(blocks, said: str):
    message = refusal(lambda: KVCache(blocks, "ink"))
    assert message.startswith("ink: ")
    assert said in message


def test_a_cache_does_not_change_and_counts_itself():
    blocks = {"double_3": (K, K), "single_0": (K[:, :2], K[:, :2])}
    found = KVCache(blocks)
    blocks.clear()
    assert list(found.blocks) == ["double_3", "single_0"]
    with pytest.raises(TypeError):
        found.blocks["double_0"] = (K, K)  # type: ignore[index]
    assert (found.heads, found.head_dim, found.tokens) == (2, 8, 3)
    assert found.nbytes == 2 * 5 * 2 * 8 * 4
    assert (found.count("double"), found.count("single"), found.count("block")) == (4, 1, 0)
    assert str(found) == "3 tokens in 2 blocks, 0 MB"


def attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V in float64, for (1, T, heads, d)."""
    q, k, v = (x.double().transpose(1, 2) for x in (query, keys, values))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)


def test_the_order_of_merging_has_no_effect_but_the_number_has():
    """Twice is log 2 more on the logits: the weights of these keys double, against the model's own."""
    one, two = cache(1), cache(2, 5, BLOCKS[1:])
    query, own, own_values = part(1, 6, 2, 8, seed=9), part(1, 6, 2, 8, seed=10), part(1, 6, 2, 8, seed=11)

    def seen(found: KVCache, name: str) -> Tensor:
        keys, values = found.blocks[name]
        return attention(query, torch.cat([own, keys], 1), torch.cat([own_values, values], 1))

    orders = merge([one, two]), merge([two, one])
    assert orders[0].tokens == orders[1].tokens == 8
    assert set(orders[0].blocks) == set(BLOCKS)
    for name in BLOCKS:
        torch.testing.assert_close(seen(orders[0], name), seen(orders[1], name))
    assert torch.equal(orders[0].blocks[BLOCKS[0]][0], one.blocks[BLOCKS[0]][0])

    name = BLOCKS[0]
    once, twice = seen(one, name), seen(merge([one, one]), name)
    assert (once - twice).norm() > 0.05 * once.norm()
    keys, values = one.blocks[name]
    q, k = (x.double().transpose(1, 2) for x in (query, torch.cat([own, keys], 1)))
    logits = q @ k.mT / 8**0.5
    logits[..., 6:] += math.log(2)
    expected = logits.softmax(-1) @ torch.cat([own_values, values], 1).double().transpose(1, 2)
    torch.testing.assert_close(twice, expected.transpose(1, 2))


def test_merging_names_all_and_refuses_what_does_not_fit():
    one, two = cache(1, made_by="ink"), replace(cache(2, made_by="wash"), base_model="klein")
    found = merge([one, cache(3), two])
    assert (found.made_by, found.base_model) == ("ink, wash", "klein")
    assert equal(merge([one]), one)
    for other in (cache(2, heads=4), cache(2, width=4), cache(2, heads=4, width=4)):
        assert "different base models" in refusal(lambda other=other: merge([one, other]))
    for names in (BLOCKS, BLOCKS[:1], ("single_9",)):
        half = cache(2, names=names, dtype=torch.float16)
        assert "types" in refusal(lambda half=half: merge([one, half]))
    assert "there is no cache" in refusal(lambda: merge([]))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str
)
def test_a_static_file_is_read_to_the_bit(tmp_path: Path, dtype: torch.dtype):
    whole = cache(1, dtype=dtype)
    found = load_cache(static(whole, tmp_path / "Ink 水墨.safetensors"))
    assert equal(found, whole)
    assert found.made_by == "Ink 水墨"


def static(whole: KVCache, path: Path) -> Path:
    tensors = {
        f"{name}.{part}": x for name, pair in whole.blocks.items() for part, x in zip("kv", pair, strict=True)
    }
    return written(path, tensors)


def written(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"double_0.k": K}, "keys or values are missing for double_0"),
        ({"double_0.k": K, "double_0.v": K, "single_3.v": K}, "missing for single_3"),
        ({"double_0.k": NAN, "double_0.v": K}, "double_0, keys, holds NaN"),
        ({"double_0.k": K, "k.double_0": K, "double_0.v": K}, "double_0 comes under two names"),
        ({"a.double_0.k": K, "b.double_0.k": K, "double_0.v": K}, "double_0 comes under two names"),
        ({"double_0.k": K, "double_0.v": K, "more": K}, "which it does not hold"),
        ({"double_0.k": K[0], "double_0.v": K[0]}, "which it does not hold"),
        ({"double_0.k": K, "double_0.v": K[:, :2]}, "two tensors (1, tokens, heads, head width) alike"),
        ({"double_00.k": K, "double_00.v": K}, "'double_00'"),
        ({"double_0.q": K, "double_0.v": K}, "which it does not hold"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, tensors: dict[str, Tensor], expected: str):
    path = written(tmp_path / "a.safetensors", tensors)
    message = refusal(lambda: load_cache(path))
    assert message.startswith("a.safetensors: ")
    assert expected in message


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path):
    path = static(cache(), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "a.safetensors: expected a cache of keys and values" in refusal(lambda: load_cache(path))
    assert "b.safetensors: " in refusal(lambda: load_cache(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    "spelling",
    [
        "{block}.{k}",
        "{block}_{k}",
        "{k}.{block}",
        "{k}_{block}",
        "{k}_cache.{block}",
        "kv_cache.{block}.{k}",
        "a.b.{k}_cache_{block}",
    ],
)
@pytest.mark.parametrize("words", [("k", "v"), ("key", "value"), ("keys", "values")], ids=str)
def test_spellings_of_others_are_read(tmp_path: Path, spelling: str, words: tuple[str, str]):
    expected = cache(1)
    names = {
        spelling.format(block=block, k=word): tensor
        for block, pair in expected.blocks.items()
        for word, tensor in zip(words, pair, strict=True)
    }
    path = written(tmp_path / "panda.safetensors", names)
    found = load_cache(path)
    assert dict(found.blocks).keys() == dict(expected.blocks).keys()
    assert equal(KVCache({name: found.blocks[name] for name in BLOCKS}), expected)
    assert found.made_by == "panda"
    assert recognise_template(path) == StaticTemplate(path, 3, len(BLOCKS))


def test_templates_are_told_apart_by_their_weights(tmp_path: Path):
    value = recognise_template(value_file(tmp_path / "value.safetensors"))
    assert isinstance(value, ValueTemplate)
    assert (value.values, set(value.blocks)) == (("",), set(BLOCKS))
    assert (value.width, value.waves, value.tokens, value.head_dim) == (256, 16, 9, 128)
    assert value.dtype == torch.float32
    three = recognise_template(
        value_file(tmp_path / "rgb.safetensors", torch.bfloat16, ("red.", "green.", "blue."))
    )
    assert isinstance(three, ValueTemplate)
    assert set(three.values) == {"red", "green", "blue"}
    assert three.dtype == torch.bfloat16
    path = static(cache(1, 7), tmp_path / "static.safetensors")
    assert recognise_template(path) == StaticTemplate(path, 7, 3)
    assert recognise_template(dit_file(tmp_path / "dit.safetensors", SIZES)) == SIZES
    for tensors in ({"lora_A.weight": K}, {"double_0.k": K, "more": K}, {"double_0.k": K[0]}):
        assert recognise_template(written(tmp_path / "other.safetensors", tensors)) is None


SIZES = DitTemplate(hidden=64, head_dim=32, mlp=192, double=2, single=2, patch=64, text=48)


def test_sizes_say_the_shapes_and_every_weight_has_a_name_of_the_host():
    unused = [name for name in SIZES.shapes() if host_name(name) is None]
    assert unused == ["norm_out.linear.weight", "proj_out.weight"]
    hosts = [host_name(name) for name in SIZES.shapes() if name not in unused]
    assert len(set(hosts)) == len(hosts) == len(SIZES.shapes()) - 2
    assert host_name("lora.weight") is None


DIT_FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("single_transformer_blocks.1.norm_k.weight"), "norm_k.weight is missing"),
    "missing norm": (lambda t: t.pop("transformer_blocks.0.img_norm_q.weight"), "misshapen"),
    "missing block": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("transformer_blocks.1.")]
        and t.update({"transformer_blocks.2.img_norm_q.weight": torch.ones(32)}),
        "transformer_blocks.2.img_norm_q.weight is not expected",
    ),
    "extra": (lambda t: t.update({"guidance_embedder.weight": K}), "guidance_embedder.weight is not expected"),
    "extra bias": (lambda t: t.update({"img_embedder.bias": torch.ones(64)}), "img_embedder.bias is not expected"),
    "misshapen": (
        lambda t: t.update({"transformer_blocks.1.txt_to_qkv.weight": torch.ones(64, 64)}),
        "txt_to_qkv.weight has (64, 64), expected (192, 64)",
    ),
    "flat": (lambda t: t.update({"img_embedder.weight": torch.ones(64)}), "misshapen"),
    "transposed": (
        lambda t: t.update({"txt_embedder.weight": t["txt_embedder.weight"].mT.contiguous()}),
        "txt_embedder.weight has (48, 64)",
    ),
    "odd heads": (
        lambda t: t.update({name: torch.ones(24) for name in t if "norm_q" in name or "norm_k" in name}),
        "heads of 24 do not make 64",
    ),
    "no head": (
        lambda t: t.update({name: torch.ones(0) for name in t if "norm_q" in name or "norm_k" in name}),
        "heads of 0 do not make 64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", DIT_FAULTS)
def test_near_misses_of_a_network_are_refused(tmp_path: Path, fault: str):
    change, expected = DIT_FAULTS[fault]
    tensors = load_file(dit_file(tmp_path / "a.safetensors", SIZES))
    change(tensors)
    path = written(tmp_path / "model.safetensors", tensors)
    message = refusal(lambda: recognise_template(path))
    assert message.startswith("model.safetensors: it is a template of a whole FLUX.2")
    assert expected in message


FIRST = f"proj_k.{BLOCKS[0]}"
VALUE_FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(f"{FIRST}.prefer_value_embedder.2.bias"), "prefer_value_embedder.2.bias is missing"),
    "one half": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("proj_v.single_1")],
        "proj_v.single_1.prefer_value_embedder.0.weight is missing",
    ),
    "extra": (lambda t: t.update({"more": K}), "more is not expected"),
    "near name": (lambda t: t.update({f"{FIRST}.prefer_value_embedder.1.weight": K}), "1.weight is not expected"),
    "misshapen": (
        lambda t: t.update({f"{FIRST}.prefer_value_embedder.2.weight": torch.ones(256, 255)}),
        "prefer_value_embedder.2.weight has the shape (256, 255)",
    ),
    "flat": (lambda t: t.update({f"{FIRST}.positional_embedding": torch.ones(256)}), "positional_embedding has the"),
    "other tokens": (
        lambda t: t.update({"proj_v.single_1.positional_embedding": torch.ones(8, 256)}),
        "proj_v.single_1.positional_embedding has the shape (8, 256)",
    ),
    "other type": (
        lambda t: t.update({f"{FIRST}.positional_embedding": torch.ones(9, 256).half()}),
        "must all be F32 or F16 or BF16, got F16, F32",
    ),
    "whole numbers": (
        lambda t: t.update({name: tensor.int() for name, tensor in t.items()}), "must all be F32 or F16 or BF16"
    ),
    "half a value": (
        lambda t: t.update({f"red.{FIRST}.positional_embedding": torch.ones(9, 256)}), "is missing"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", VALUE_FAULTS)
def test_near_misses_of_a_value_template_are_refused(tmp_path: Path, fault: str):
    change, expected = VALUE_FAULTS[fault]
    tensors = value_tensors()
    change(tensors)
    path = written(tmp_path / "model.safetensors", tensors)
    message = refusal(lambda: recognise_template(path))
    assert message.startswith("model.safetensors: ")
    assert expected in message


@pytest.mark.parametrize("sizes", [{"wide": 192}, {"waves": 15}, {"wide": 64}], ids=str)
def test_widths_that_heads_do_not_make_are_refused(tmp_path: Path, sizes: dict[str, Any]):
    path = value_file(tmp_path / "model.safetensors", **sizes)
    assert "FLUX.2" in refusal(lambda: recognise_template(path))


class Encoder(nn.Module):
    """DiffSynth's SingleValueEncoder, from its description alone: module names are those of the file."""

    def __init__(self, wide: int, tokens: int, waves: int) -> None:
        super().__init__()
        self.waves = waves
        self.prefer_value_embedder = nn.Sequential(nn.Linear(waves, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.positional_embedding = nn.Parameter(torch.zeros(tokens, wide))

    def forward(self, number: float, factor: float) -> Tensor:
        dtype = self.positional_embedding.dtype
        scaled = torch.tensor([number]).to(dtype) * factor
        rates = torch.exp(
            -math.log(10000) * torch.arange(self.waves // 2, dtype=torch.float32) / (self.waves // 2)
        )
        angles = scaled.float().unsqueeze(-1) * rates
        embedded = torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1).to(dtype)
        return self.prefer_value_embedder(embedded) + self.positional_embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("prefixes", [("",), ("red.", "green.", "blue.")], ids=len)
def test_values_give_what_plain_modules_give_to_the_bit(tmp_path: Path, dtype: torch.dtype, prefixes):
    path = value_file(tmp_path / "model.safetensors", dtype, prefixes)
    template = recognise_template(path)
    assert isinstance(template, ValueTemplate)
    given = dict(zip(template.values, (0.3, -1.7, 0.0), strict=False))
    found = template.make(list(given.values()), 1000.0, "light", "klein")
    assert (found.made_by, found.base_model, found.tokens) == ("light", "klein", 9 * len(prefixes))
    stored = load_file(path)
    encoder = Encoder(256, 9, 16).to(dtype)
    for block in BLOCKS:
        for which, part in zip("kv", found.blocks[block], strict=True):
            expected = []
            for value, number in given.items():
                place = f"{value}.proj_{which}.{block}.".lstrip(".")
                encoder.load_state_dict(
                    {name: stored[place + name] for name in encoder.state_dict()}, strict=True
                )
                with torch.no_grad():
                    expected.append(encoder(number, 1000.0).view(1, 9, 2, 128))
            assert part.dtype == dtype
            assert torch.equal(part, torch.cat(expected, 1))
    other = template.make([0.31] * len(prefixes), 1000.0, "light")
    assert not any(
        torch.equal(one, other.blocks[b][i]) for b in BLOCKS for i, one in enumerate(found.blocks[b])
    )


def test_values_come_in_a_known_order(tmp_path: Path):
    """safetensors sorts names, so the order is alphabetical: whoever gives numbers must go by `values`."""
    template = recognise_template(
        value_file(tmp_path / "m.safetensors", prefixes=("red.", "green.", "blue."))
    )
    assert isinstance(template, ValueTemplate)
    one = template.make([0.1, 0.2, 0.3], 1.0, "rgb")
    two = template.make([0.1, 0.2, 0.4], 1.0, "rgb")
    keys, others = one.blocks[BLOCKS[0]][0], two.blocks[BLOCKS[0]][0]
    assert torch.equal(keys[:, :18], others[:, :18])
    assert not torch.equal(keys[:, 18:], others[:, 18:])


@pytest.mark.parametrize(
    ("numbers", "given"),
    [([], "none"), ([1.0, 2.0], "1, 2"), ([math.nan], "nan"), ([math.inf], "inf"), ([-math.inf], "-inf")],
)
def test_other_numbers_are_refused(tmp_path: Path, numbers: list[float], given: str):
    template = recognise_template(value_file(tmp_path / "model.safetensors"))
    assert isinstance(template, ValueTemplate)
    message = refusal(lambda: template.make(numbers, 1000.0, "light"))
    assert message == f"light: expected 1 finite numbers, got {given}"


def test_a_value_template_with_nan_is_refused_when_it_is_used(tmp_path: Path):
    tensors = value_tensors()
    tensors["proj_v.single_1.prefer_value_embedder.2.weight"][3, 4] = math.nan
    path = written(tmp_path / "model.safetensors", tensors)
    template = recognise_template(path)
    assert isinstance(template, ValueTemplate)
    message = refusal(lambda: template.make([0.5], 1000.0, "light"))
    assert "model.safetensors: proj_v.single_1.prefer_value_embedder.2.weight holds NaN" in message


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("32", 32), ("64", 64), ("256", 256), ("", 128), ("0", 128), ("-8", 128), ("1e2", 128), ("9999999", 128),
        ("00001" + "0" * 16_000, 128),
    ],
)  # fmt: skip
def test_the_metadata_may_say_the_width_of_heads(tmp_path: Path, said: str, expected: int):
    path = written(tmp_path / "model.safetensors", value_tensors(), {"head_dim": said})
    template = recognise_template(path)
    assert isinstance(template, ValueTemplate)
    assert template.head_dim == expected
    found = template.make([0.5], 1000.0, "light")
    assert (found.heads, found.head_dim) == (256 // expected, expected)
    flat = [keys.flatten(2) for keys, _ in found.blocks.values()]
    plain = recognise_template(value_file(tmp_path / "plain.safetensors"))
    assert isinstance(plain, ValueTemplate)
    truth = [keys.flatten(2) for keys, _ in plain.make([0.5], 1000.0, "light").blocks.values()]
    assert all(torch.equal(one, two) for one, two in zip(flat, truth, strict=True))
