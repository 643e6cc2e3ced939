"""Version 1 predictors: their files to the letter, their algebra on full tensors, and what is refused."""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_v1 import PUBLISHED, TINY_MODELS, random_predictor, save, tiny_qwen, tiny_z_image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from i2l.i2l_core.base_models import MODELS
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, Target
from i2l.i2l_core.predictors.v1 import kinds as v1_kinds
from i2l.i2l_core.predictors.v1 import network as v1
from i2l.i2l_core.predictors.v1.kinds import Z_IMAGE, Residual, V1Config, recognise
from i2l.i2l_core.predictors.v1.network import V1Network, load_v1

RANK = 4
CONFIGS: dict[str, Callable[[], V1Config]] = {
    "z-image": tiny_z_image,
    "qwen style": tiny_qwen,
    "qwen residual": lambda: tiny_qwen(Residual(length=5, width=6, code=2)),
}


@pytest.fixture(autouse=True)
def _tiny_models_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1_kinds, "MODELS", (*MODELS, *TINY_MODELS))


@pytest.fixture(params=CONFIGS)
def predictor(request: pytest.FixtureRequest) -> V1Network:
    return random_predictor(CONFIGS[request.param]())


def pictures(predictor: V1Network, count: int) -> tuple[Tensor, Tensor | None]:
    """Random embeddings, and hidden states where the predictor reads them."""
    residual = predictor.config.residual
    states = torch.randn(count, residual.length, residual.width) * 20 if residual else None
    return torch.randn(count, predictor.config.token_dim), states


def one_by_one(tensors: dict[str, Tensor], x: Tensor, states: Tensor | None) -> dict[str, Tensor]:
    """file name of a layer's networks -> its change, for one picture: the equations, matrix by matrix, in fp64"""
    deltas = {}
    for prefix in sorted({name.rsplit(".proj_", 2)[0] for name in tensors if ".proj_a." in name}):
        r = torch.zeros(1, dtype=torch.float64)
        if states is not None:
            block = prefix.split(".layers.")[0]
            first, second = (
                tensors[f"{block}.proj_residual.proj_{end}.weight"].double() for end in ("in", "out")
            )
            r = second @ torch.cat([first @ state for state in states.double() * 0.05])
        out = {
            m: tensors[f"{prefix}.proj_{m}.proj_out.weight"].double()
            @ (tensors[f"{prefix}.proj_{m}.proj_in.weight"].double() @ x.double() + r)
            for m in "ab"
        }
        deltas[prefix] = out["b"].reshape(-1, RANK) @ out["a"].reshape(RANK, -1)
    return deltas


def target_of(prefix: str, config: V1Config, d_out: int) -> Target:
    """Where the layer behind a name in the file lands in the host, from the published order, written out again."""
    module, block, layer = re.fullmatch(r"(\w+?)?(?:_lora)?\.?blocks\.(\d+)\.layers\.(\d)", prefix).groups()  # type: ignore
    block, layer = int(block), int(layer)
    if config.kind is Z_IMAGE:
        group, i = divmod(block, {"layers": 3, "context_refiner": 1, "noise_refiner": 1}[module])
        if group == 1:
            return Target(f"{module}.{i}.feed_forward.{('w1', 'w2', 'w3')[layer]}")
        if layer == 3:
            return Target(f"{module}.{i}.attention.out")
        return Target(f"{module}.{i}.attention.qkv", (layer * d_out, d_out))
    group, i = divmod(block, 2)
    name = (
        ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        ("img_mlp.net.2", "img_mod.1"),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ("txt_mlp.net.2", "txt_mod.1"),
    )[group][layer]
    return Target(f"transformer_blocks.{i}.{name}")


def close(lora: LoRA, deltas: dict[Target, Tensor], limit: float = 1e-5) -> None:
    assert lora.layers.keys() == deltas.keys()
    for target, delta in deltas.items():
        error = (lora.layers[target].delta().double() - delta).abs().max() / delta.abs().max()
        assert error < limit, f"{target}: {error:.1e}"


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **kwargs or {})


# the files


@pytest.mark.parametrize("title", PUBLISHED)
def test_the_published_files_have_these_names_and_shapes(title: str):
    config, expected = PUBLISHED[title]
    shapes = {name: tuple(t.shape) for name, t in V1Network(config, device="meta").tensors().items()}
    entries = [*shapes, *(f"{name}:{'_'.join(map(str, shape))}" for name, shape in shapes.items())]
    assert hashlib.md5(",".join(sorted(entries)).encode()).hexdigest() == expected
    found = recognise(shapes)
    assert (found, found.title) == (config, title)
    assert found.base_model.id == ("z-image" if title.startswith("Z") else "qwen-image")


def test_the_published_predictors_adapt_these_layers():
    z, qwen = (PUBLISHED[name][0].adapted_layers for name in ("Z-Image-i2L", "Qwen-Image-i2L Fine"))
    assert (len(z), len(qwen)) == (238, 720)
    assert len({slot.target for slot in (*z, *qwen)}) == 958
    by_name = {slot.name: slot for slot in (*z, *qwen)}
    k = by_name["context_refiner.1.attention.to_k"]
    assert (k.target, k.d_in, k.d_out) == (
        Target("context_refiner.1.attention.qkv", (3840, 3840)),
        3840,
        3840,
    )
    w2 = by_name["layers.29.feed_forward.w2"]
    assert (w2.target, w2.d_in, w2.d_out) == (Target("layers.29.feed_forward.w2"), 10240, 3840)
    modulation = by_name["transformer_blocks.59.txt_mod.1"]
    assert (modulation.d_in, modulation.d_out) == (3072, 18432)


def test_the_pictures_behind_the_hidden_states():
    sides = [PUBLISHED[f"Qwen-Image-i2L {name}"][0].residual for name in ("Coarse", "Fine")]
    assert [residual and residual.side for residual in sides] == [224, 1024]
    assert Residual(100, 3584, 64).side is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_becomes_the_same_predictor(tmp_path: Path, predictor: V1Network, dtype: torch.dtype):
    predictor = predictor.to(dtype)
    path = save(predictor, tmp_path / "Some i2L.safetensors")
    loaded = load_v1(path)
    assert (loaded.config, loaded.name) == (predictor.config, "Some i2L")
    file = load_file(path)
    tensors = loaded.predictor.tensors()
    assert tensors.keys() == file.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, file[name]), name
    path.write_bytes(b"")  # nothing is still mapped to the file
    assert torch.equal(loaded.predictor.compress, predictor.compress)


# the algebra


def test_one_picture_gives_what_the_equations_say(predictor: V1Network):
    x, states = pictures(predictor, 1)
    lora = predictor(x, residuals=states)
    deltas = one_by_one(predictor.tensors(), x[0], None if states is None else states[0])
    close(lora, {target_of(name, predictor.config, len(delta)): delta for name, delta in deltas.items()})
    assert (lora.rank, lora.base_model) == (RANK, predictor.config.base_model.id)


def test_another_rank_is_read_from_the_shapes(tmp_path: Path):
    predictor = random_predictor(replace(tiny_z_image(), rank=6))
    loaded = load_v1(save(predictor, tmp_path / "six.safetensors"))
    assert loaded.config == predictor.config
    x, _ = pictures(predictor, 2)
    layers = predictor(x).layers
    assert {layer.rank for layer in layers.values()} == {12}
    for target, layer in loaded.predictor(x).layers.items():
        assert torch.equal(layer.delta(), layers[target].delta())


@pytest.mark.parametrize("weights", [None, (1, 1, 1), (2.5, 0.5, 1), (0.3, 0, 0.1), (0, 0, 7)])
def test_several_pictures_give_the_weighted_mean_of_their_changes(
    predictor: V1Network, weights: tuple[float, ...] | None
):
    x, states = pictures(predictor, 3)
    lora = predictor(x, weights, states)
    alone = [predictor(x[i : i + 1], None, None if states is None else states[i : i + 1]) for i in range(3)]
    share = torch.tensor(weights or (1, 1, 1), dtype=torch.float64)
    share /= share.sum()
    deltas = {
        target: sum((s * one.layers[target].delta().double() for s, one in zip(share, alone, strict=True)))
        for target in lora.layers
    }
    close(lora, deltas)  # type: ignore[arg-type]
    assert {layer.rank for layer in lora.layers.values()} == {RANK * int((share > 0).sum())}


def test_twice_is_weight_two_and_left_out_is_weight_zero(predictor: V1Network):
    x, states = pictures(predictor, 2)

    def at(*which: int) -> tuple[Tensor, Tensor | None]:
        return x[list(which)], None if states is None else states[list(which)]

    def predicted(which: tuple[int, ...], weights: tuple[float, ...] | None = None) -> LoRA:
        embeddings, residuals = at(*which)
        return predictor(embeddings, weights, residuals)

    twice = {target: layer.delta().double() for target, layer in predicted((0, 0, 1)).layers.items()}
    close(predicted((0, 1), (2, 1)), twice)
    for target, layer in predicted((0, 1), (1, 0)).layers.items():
        assert torch.equal(layer.down, predicted((0,)).layers[target].down)
        assert torch.equal(layer.up, predicted((0,)).layers[target].up)


def test_the_parts_of_the_lora_are_those_of_the_pictures_in_order(predictor: V1Network):
    x, states = pictures(predictor, 2)
    lora = predictor(x, (3, 1), states)
    for i, share in enumerate((0.75, 0.25)):
        alone = predictor(x[i : i + 1], residuals=None if states is None else states[i : i + 1])
        for target, layer in alone.layers.items():
            rows = slice(i * RANK, (i + 1) * RANK)
            torch.testing.assert_close(lora.layers[target].down[rows], layer.down * share)
            torch.testing.assert_close(lora.layers[target].up[:, rows], layer.up)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_weights_of_another_type_are_brought_over_in_pieces_of_any_size(
    predictor: V1Network, size: int, monkeypatch: pytest.MonkeyPatch
):
    x, states = pictures(predictor, 2)
    half = predictor.bfloat16()
    expected = random_predictor(half.config)
    expected.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    monkeypatch.setattr(v1, "PIECE_BYTES", size)
    lora = half(x, None, states)
    for target, layer in expected(x, None, states).layers.items():
        assert lora.layers[target].up.dtype == torch.float32
        torch.testing.assert_close(lora.layers[target].up, layer.up)
        torch.testing.assert_close(lora.layers[target].down, layer.down)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}


def test_the_number_of_products_does_not_grow_with_the_layers(predictor: V1Network):
    x, states = pictures(predictor, 3)
    with Products() as products:
        predictor(x, None, states)
    widths = {head.width for head in predictor.config.heads}
    assert products.count == 1 + len(widths) + (2 if states is not None else 0)


@pytest.mark.parametrize("count", [1, 3])
def test_each_matrix_has_memory_of_its_own(predictor: V1Network, count: int):
    """Or a LoRA of a few layers would hold on to the whole product."""
    x, states = pictures(predictor, count)
    for layer in predictor(x, None, states).layers.values():
        for matrix in (layer.down, layer.up):
            assert matrix.is_contiguous()
            assert matrix.untyped_storage().nbytes() == matrix.nbytes


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (math.nan, 1), (math.inf, 1), (1,), (1, 1, 1)])
def test_weights_that_make_no_sense_are_refused(predictor: V1Network, weights: tuple[float, ...]):
    x, states = pictures(predictor, 2)
    with pytest.raises(I2LError, match="weight"):
        predictor(x, weights, states)


def test_hidden_states_are_given_to_those_that_read_them():
    plain, reads = random_predictor(tiny_qwen()), random_predictor(CONFIGS["qwen residual"]())
    x, states = pictures(reads, 1)
    with pytest.raises(I2LError, match="reads hidden states besides the embeddings, got none"):
        reads(x)
    with pytest.raises(I2LError, match="reads no hidden states besides the embeddings, got some"):
        plain(x, residuals=states)


# what is refused


def broken(tmp_path: Path, config: V1Config, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = {name: tensor.clone() for name, tensor in random_predictor(config).tensors().items()}
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


FIRST, LAST = "layers_lora.blocks.0.layers.0.proj_a.", "noise_refiner_lora.blocks.1.layers.2.proj_b."
CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(f"{LAST}proj_in.weight"), rf"{LAST}proj_in\.weight is missing$"),
    "first missing": (lambda t: t.pop(f"{FIRST}proj_out.weight"), rf"{FIRST}proj_out\.weight is missing$"),
    "extra": (lambda t: t.update(x=torch.zeros(1)), r": x is not expected$"),
    "bias": (
        lambda t: t.update({f"{FIRST}proj_in.bias": torch.zeros(3)}),
        rf"{FIRST}proj_in\.bias is not expected$",
    ),
    "shape": (
        lambda t: t.update({f"{LAST}proj_in.weight": torch.zeros(3, 11)}),
        rf"{LAST}proj_in\.weight expected \(3, 10\), got \(3, 11\)$",
    ),
    "turned": (
        lambda t: t.update({f"{FIRST}proj_in.weight": torch.zeros(10, 3)}),
        rf"{FIRST}proj_in\.weight expected \(3, 10\), got \(10, 3\)$",
    ),
    "no matrix": (
        lambda t: t.update({f"{FIRST}proj_out.weight": torch.zeros(48)}),
        rf"{FIRST}proj_out\.weight expected \(48, 3\), got \(48,\)$",
    ),
    "NaN": (lambda t: t[f"{LAST}proj_out.weight"][-1].fill_(math.nan), rf"{LAST}proj_out\.weight holds NaN"),
    "infinity": (lambda t: t[f"{FIRST}proj_in.weight"].fill_(math.inf), rf"{FIRST}proj_in\.weight holds NaN"),
    "types": (
        lambda t: t.update({f"{LAST}proj_in.weight": t[f"{LAST}proj_in.weight"].half()}),
        "its tensors must all be F32 or F16 or BF16, got F16, F32",
    ),
    "integers": (
        lambda t: t.update({n: x.char() for n, x in t.items()}),
        "must all be F32 or F16 or BF16, got I8",
    ),
    "block missing": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("layers_lora.blocks.5.")],
        r"layers_lora\.blocks\.5\.layers\.0\.proj_a\.proj_in\.weight is missing, .* and 7 more$",
    ),
    "part missing": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("context_refiner_lora.")],
        r"context_refiner_lora\.blocks\.0\.layers\.0\.proj_a\.proj_in\.weight is missing, .* and 23 more$",
    ),
    "layer missing": (
        lambda t: [t.pop(name) for name in list(t) if ".layers.0.proj_b." in name],
        r"\.layers\.0\.proj_b\.proj_in\.weight is missing, .* and 15 more$",
    ),
    "nothing read": (
        lambda t: [t.pop(name) for name in list(t) if name.endswith("in.weight")],
        r"proj_in\.weight is missing, as in every other block; download the file again$",
    ),
    "other rank": (
        lambda t: t.update({f"{LAST}proj_out.weight": torch.zeros(160, 3)}),
        rf"{LAST}proj_out\.weight expected \(80, 3\), got \(160, 3\)$",
    ),
    "odd rank": (
        lambda t: t.update({n: x[:-1] for n, x in t.items() if n.endswith("out.weight")}),
        r"proj_out\.weight expected \(36, 3\), got \(47, 3\)",
    ),
    "empty": (
        lambda t: t.update({n: x[:0] for n, x in t.items() if n.endswith("in.weight")}),
        "predictor code must be a whole number from 1",
    ),
    "leading zero": (
        lambda t: t.update(
            {n.replace("blocks.0.", "blocks.00."): t.pop(n) for n in list(t) if "blocks.0." in n}
        ),
        r"\.blocks\.0\.\S+ is missing",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_file_is_refused_by_name(tmp_path: Path, case: str):
    change, message = CHANGES[case]
    path = broken(tmp_path, tiny_z_image(), change)
    with pytest.raises(I2LError, match=message) as caught:
        load_v1(path)
    assert str(caught.value).startswith("broken.safetensors: ")
    assert "\n" not in str(caught.value)


RESIDUALS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (
        lambda t: t.pop("blocks.7.proj_residual.proj_in.weight"),
        r"blocks\.7\.proj_residual\.proj_in",
    ),
    "half": (
        lambda t: [t.pop(name) for name in list(t) if name.endswith("proj_residual.proj_out.weight")],
        r"blocks\.0\.proj_residual\.proj_out\.weight is missing, as in every other block",
    ),
    "length": (
        lambda t: t.update({n: x[:, :-1] for n, x in t.items() if n.endswith("residual.proj_out.weight")}),
        r"blocks\.0\.proj_residual\.proj_out\.weight expected \(3, 8\), got \(3, 9\)",
    ),
    "empty": (
        lambda t: t.update({n: x[:0] for n, x in t.items() if n.endswith("residual.proj_in.weight")}),
        "residual code must be a whole number from 1",
    ),
}


@pytest.mark.parametrize("case", RESIDUALS)
def test_a_changed_residual_is_refused_by_name(tmp_path: Path, case: str):
    change, message = RESIDUALS[case]
    path = broken(tmp_path, CONFIGS["qwen residual"](), change)
    with pytest.raises(I2LError, match=message):
        load_v1(path)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.99, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float):
    path = save(random_predictor(tiny_z_image()), tmp_path / "short.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(
        I2LError, match=r"^short\.safetensors: expected a predictor file, but it is truncated"
    ):
        load_v1(path)


def test_a_file_larger_than_the_memory_is_refused(tmp_path: Path):
    with (tmp_path / "large.safetensors").open("wb") as file:  # sparse: it takes no room
        header = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (1 << 40, 1 << 42)
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + (1 << 42))
        except OSError as error:
            pytest.skip(f"no file of four terabytes here: {error}")
    with pytest.raises(
        I2LError, match=r"^large\.safetensors: it has 4398.0 GB, more than this computer's memory"
    ):
        load_v1(tmp_path / "large.safetensors")


def test_another_file_is_no_predictor_of_version_1(tmp_path: Path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(I2LError, match=r"^x\.safetensors: it is not an i2L predictor of version 1"):
        load_v1(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"code": 0}, "predictor code must be a whole number from 1"),
        ({"token_dim": 1 << 30}, "predictor token_dim must be"),
        ({"rank": -1}, "predictor rank must be"),
    ],
)
def test_impossible_sizes_are_refused(entry: dict, message: str):
    with pytest.raises(I2LError, match=message):
        replace(tiny_z_image(), **entry)


def test_all_the_names_and_none_of_the_sizes_cost_nothing(tmp_path: Path):
    names = {name: torch.zeros(1) for name in PUBLISHED["Qwen-Image-i2L Coarse"][0].shapes()}
    save_file(names, tmp_path / "lie.safetensors")
    with pytest.raises(I2LError, match="is missing, as in every other block"):
        load_v1(tmp_path / "lie.safetensors")
