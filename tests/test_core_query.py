"""The query predictor: its equations against a slow reference; what weights, order and batches must mean."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import Target
from i2l.i2l_core.predictors.query.config import LayerSpec, QueryConfig
from i2l.i2l_core.predictors.query.network import BatchedLoRAs, QueryNetwork

CONFIG = QueryConfig(
    hidden=24,
    blocks=3,
    heads=3,
    code=5,
    rank=2,
    token_dim=16,
    layers=(
        LayerSpec("layers.0.attention.qkv", (0, 12), 12, 12),
        LayerSpec("layers.0.attention.qkv", (12, 12), 12, 12),
        LayerSpec("layers.0.attention.qkv", (24, 12), 12, 12),
        LayerSpec("layers.0.w1", None, 12, 20),
        LayerSpec("layers.0.w2", None, 20, 12),
        LayerSpec("layers.1.w1", None, 12, 20),
    ),
    alpha=0.5,
)


def trained(dtype: torch.dtype = torch.float64, config: QueryConfig = CONFIG) -> QueryNetwork:
    """A predictor whose every parameter has moved from its initial value."""
    predictor = QueryNetwork(config, dtype=dtype)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return predictor


def close(a: Tensor, b: Tensor, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """By default for double precision, where only the order of sums differs."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def assert_same(a: BatchedLoRAs, b: BatchedLoRAs, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    assert a.groups == b.groups
    for x, y in zip(a.rows, b.rows, strict=True):
        close(x, y, rtol, atol)


def test_shapes_and_order():
    prediction = trained()(torch.randn(4, 7, 16).double())
    layers = prediction.layers()
    assert list(layers) == [spec.target for spec in CONFIG.layers]
    for spec in CONFIG.layers:
        down, up = layers[spec.target]
        assert (down.shape, up.shape) == ((4, 2, spec.d_in), (4, spec.d_out, 2))
    assert prediction.batch == 4
    assert CONFIG.n_queries == 2 * 2 * 6 == len(trained().queries)


def reference(predictor: QueryNetwork, tokens: Tensor, bias: Tensor) -> dict[Target, tuple[Tensor, Tensor]]:
    """Eq. 2 to 4 for one style, a head and a layer at a time, every state in every block. Shares no code."""
    config, p = predictor.config, dict(predictor.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", torch.zeros(()))

    z = linear(norm(tokens, "token_norm"), "token_in")
    x = torch.cat([p["queries"], z])
    columns = torch.cat([torch.zeros(config.n_queries), bias])
    width = config.hidden // config.heads
    for b in range(config.blocks):
        name = f"blocks.{b}"
        h = norm(x, f"{name}.attention_norm")
        q, kv = linear(h, f"{name}.query"), linear(h, f"{name}.key_value")
        outputs = []
        for head in range(config.heads):
            at = slice(head * width, (head + 1) * width)
            k, v = kv[:, : config.hidden][:, at], kv[:, config.hidden :][:, at]
            scores = rms(q[:, at], f"{name}.query_norm") @ rms(k, f"{name}.key_norm").T / math.sqrt(width)
            weights = (scores + columns).exp()
            outputs.append(weights / weights.sum(-1, keepdim=True) @ v)
        x = x + linear(torch.cat(outputs, -1), f"{name}.attention_out")
        h = linear(norm(x, f"{name}.mlp_norm"), f"{name}.mlp_in")
        h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"{name}.mlp_out")
    states = norm(x, "out_norm")

    made: dict[tuple[int, str], Tensor] = {}
    at = 0
    for kind in "AB":
        widths = [layer.d_in if kind == "A" else layer.d_out for layer in config.layers]
        for width in sorted(set(widths)):
            for member, i in enumerate(i for i, w in enumerate(widths) if w == width):
                name = f"heads.{kind}_{width}"
                scale = p[f"{name}.alpha"][member] if kind == "B" else width**-0.5
                c, d = p[f"{name}.compress"][member].T, p[f"{name}.expand"][member].T
                made[i, kind] = torch.stack([d @ (c @ states[at + m]) * scale for m in range(config.rank)])
                at += config.rank
    assert at == config.n_queries
    return {layer.target: (made[i, "A"], made[i, "B"].T) for i, layer in enumerate(config.layers)}


def test_it_computes_the_equations_of_the_paper():
    predictor = trained()
    tokens, bias = torch.randn(2, 9, 16).double(), torch.randn(2, 9).double()
    bias[1, 3] = -math.inf
    with torch.no_grad():
        layers = predictor(tokens, bias).layers()
        for row in range(2):
            for target, (down, up) in reference(predictor, tokens[row], bias[row]).items():
                close(layers[target][0][row], down)
                close(layers[target][1][row], up)


def test_heads_of_equal_shape_are_one_batched_product(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: sizes.append(len(a)) or real(a, b))
    trained()(torch.randn(3, 5, 16).double())
    # A of width 12 (5 layers) and 20 (1), B of width 12 (4) and 20 (2); compress and expand
    assert sizes == [5, 5, 1, 1, 4, 4, 2, 2]


def test_a_fresh_predictor_is_the_identity_with_rows_of_about_unit_length():
    layers = QueryNetwork(CONFIG)(torch.randn(2, 9, 16)).layers()
    for down, up in layers.values():
        assert not up.any()
        assert 0.1 < down.norm(dim=-1).mean() < 3


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    counts=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_a_weight_is_how_often_a_reference_is_given(sizes: list[int], counts: list[int], seed: int):
    """log(w) on a picture's columns: w = 2 equals giving it twice, w = 0 leaving it out."""
    torch.manual_seed(seed)
    predictor = trained()
    pictures = [torch.randn(1, size, 16).double() for size in sizes]
    counts = counts[: len(pictures)]
    bias = torch.cat(
        [torch.full((1, n), float(w)).double().log() for n, w in zip(sizes, counts, strict=True)], 1
    )
    repeated = [picture for picture, w in zip(pictures, counts, strict=True) for _ in range(w)]
    with torch.no_grad():
        weighted = predictor(torch.cat(pictures, 1), bias)
        given_often = predictor(torch.cat([*repeated, torch.zeros(1, 0, 16).double()], 1))
    assert_same(weighted, given_often)


def test_a_weight_of_two_and_of_zero_in_single_precision():
    predictor = trained(torch.float32)
    a, b = torch.randn(1, 6, 16), torch.randn(1, 4, 16)
    with torch.no_grad():
        twice = predictor(torch.cat([a, b], 1), torch.tensor([[math.log(2)] * 6 + [0.0] * 4]))
        assert_same(twice, predictor(torch.cat([a, a, b], 1)), rtol=1e-4, atol=1e-5)
        without = predictor(torch.cat([a, b], 1), torch.tensor([[0.0] * 6 + [-math.inf] * 4]))
        assert_same(without, predictor(a), rtol=1e-4, atol=1e-5)
        assert_same(predictor(a, torch.zeros(1, 6)), predictor(a), rtol=1e-4, atol=1e-5)


def test_a_mask_inside_a_reference_hides_its_tokens():
    predictor = trained()
    tokens = torch.randn(1, 8, 16).double()
    hidden = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0]).bool()
    bias = torch.zeros(1, 8).double().masked_fill(hidden, -math.inf)
    with torch.no_grad():
        masked = predictor(tokens, bias)
        assert_same(masked, predictor(tokens[:, ~hidden]))
        changed = torch.where(hidden[:, None], 100 * torch.randn_like(tokens), tokens)
        assert_same(masked, predictor(changed, bias))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_order_of_the_references_does_not_matter(count: int):
    predictor = trained()
    pictures = [torch.randn(1, 3 + i, 16).double() for i in range(count)]
    with torch.no_grad():
        expected = predictor(torch.cat(pictures, 1))
        assert_same(predictor(torch.cat(pictures[::-1], 1)), expected)
        order = torch.randperm(sum(p.shape[1] for p in pictures))
        assert_same(predictor(torch.cat(pictures, 1)[:, order]), expected)


def test_every_reference_matters():
    predictor = trained()
    a, b = torch.randn(1, 4, 16).double(), torch.randn(1, 4, 16).double()
    with torch.no_grad():
        one, both = predictor(a), predictor(torch.cat([a, b], 1))
    for x, y in zip(one.rows, both.rows, strict=True):
        assert (x - y).abs().max() > 1e-3


def test_styles_of_a_batch_do_not_see_each_other():
    predictor = trained()
    tokens, bias = torch.randn(3, 6, 16).double(), torch.randn(3, 6).double()
    with torch.no_grad():
        together = predictor(tokens, bias)
        for row in range(3):
            alone = predictor(tokens[row : row + 1], bias[row : row + 1])
            for x, y in zip(together.rows, alone.rows, strict=True):
                close(x[row : row + 1], y)


def test_it_is_deterministic():
    torch.manual_seed(3)
    first = trained(torch.float32)
    torch.manual_seed(3)
    second = trained(torch.float32)
    tokens = torch.randn(2, 9, 16)
    with torch.no_grad():
        runs = [first(tokens), first(tokens), second(tokens), copy.deepcopy(first)(tokens)]
    for run in runs[1:]:
        assert_same(run, runs[0], rtol=0, atol=0)


def test_alpha_scales_up_alone_and_its_own_layer_alone():
    predictor, tokens = trained(), torch.randn(1, 5, 16).double()
    with torch.no_grad():
        before = predictor(tokens).layers()
        predictor.get_parameter("heads.B_20.alpha")[1] *= 3  # the second layer with d_out 20
        after = predictor(tokens).layers()
    for target, (down, up) in after.items():
        assert torch.equal(down, before[target][0])
        factor = 3 if target.weight == "layers.1.w1" else 1
        close(up, before[target][1] * factor)


def test_alpha_starts_as_configured():
    alphas = [p for name, p in QueryNetwork(CONFIG).named_parameters() if name.endswith("alpha")]
    assert [value for alpha in alphas for value in alpha.tolist()] == [0.5] * 6


def test_gradients_reach_every_parameter_and_the_tokens():
    predictor = trained(torch.float32)
    tokens = torch.randn(2, 9, 16, requires_grad=True)
    bias = torch.zeros(2, 9)
    bias[0, :3] = -math.inf
    deltas = [up @ down for down, up in predictor(tokens, bias).layers().values()]
    torch.stack([delta.square().sum() for delta in deltas]).sum().backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.view(-1).any(), name
    assert tokens.grad is not None
    assert not tokens.grad[0, :3].any()  # left out: no gradient, and no NaN
    assert tokens.grad[0, 3:].any(-1).all()


def test_a_fresh_predictor_learns():
    """From the identity to one fixed delta per style: the zero start lets gradients through."""
    predictor = QueryNetwork(CONFIG)
    tokens = torch.randn(2, 6, 16)
    wanted = {t: torch.randn_like(u @ d) for t, (d, u) in predictor(tokens).layers().items()}
    losses = []
    for _ in range(12):
        layers = predictor(tokens).layers()
        loss = torch.stack(
            [(up @ down - wanted[t]).square().mean() for t, (down, up) in layers.items()]
        ).mean()
        predictor.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in predictor.parameters():  # by sign, as Adam does at first
                assert parameter.grad is not None
                parameter.sub_(6e-3 * parameter.grad.sign())
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]  # rank 2 of 12 random dimensions: a third at best


def test_bf16_is_close_to_fp32():
    """8 bits of mantissa through three blocks: within 5 % of each group's norm (measured: 0.7 to 1.8 %)."""
    predictor, tokens = trained(torch.float32), torch.randn(2, 9, 16)
    bias = torch.tensor([math.log(2)] * 4 + [-math.inf] * 5).expand(2, -1)
    with torch.no_grad():
        full = predictor(tokens, bias)
        half = predictor.bfloat16()(tokens.bfloat16(), bias)
    for x, y in zip(full.rows, half.rows, strict=True):
        assert y.dtype == torch.bfloat16
        assert (y.float() - x).norm() / x.norm() < 0.05


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # autocast keeps norms in fp32 on GPUs, not on CPUs
def test_it_runs_under_autocast():
    predictor, tokens = trained(torch.float32), torch.randn(2, 9, 16)
    full = predictor(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        half = predictor(tokens, torch.zeros(2, 9))
    torch.stack([rows.float().square().sum() for rows in half.rows]).sum().backward()
    for x, y in zip(full.rows, half.rows, strict=True):
        assert (y.float() - x).norm() / x.norm() < 0.05


def test_lora_is_a_detached_copy_of_one_row():
    prediction = trained(torch.float32)(torch.randn(3, 9, 16))
    lora = prediction.lora(1, base_model="i2l-tiny", predictor="p", references=("aa", "bb"))
    assert (lora.base_model, lora.predictor, lora.references) == ("i2l-tiny", "p", ("aa", "bb"))
    assert (lora.n_layers, lora.rank) == (6, 2)
    storages = set()
    for target, (down, up) in prediction.layers().items():
        layer = lora.layers[target]
        assert torch.equal(layer.down, down[1])
        assert torch.equal(layer.up, up[1])
        for tensor in (layer.down, layer.up):
            assert tensor.is_contiguous()
            assert not tensor.requires_grad
            assert tensor.dtype == torch.float32
            storages.add(tensor.untyped_storage().data_ptr())
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert len(storages) == 12


def test_a_meta_build_takes_no_memory_and_becomes_real_by_assigning_weights():
    real = trained(torch.float32)
    built = QueryNetwork(CONFIG, device="meta", dtype=torch.float32)
    assert all(tensor.is_meta for tensor in [*built.parameters(), *built.buffers()])
    built.load_state_dict(real.state_dict(), strict=True, assign=True)
    tokens = torch.randn(1, 5, 16)
    with torch.no_grad():
        assert_same(built(tokens), real(tokens), rtol=0, atol=0)


def test_a_full_size_network_is_described_without_memory():
    wide = LayerSpec("a", None, 3072, 27648), LayerSpec("b", None, 12288, 3072)
    config = QueryConfig(hidden=2048, blocks=12, heads=16, code=256, rank=16, token_dim=1536, layers=wide)
    predictor = QueryNetwork(config, device="meta", dtype=torch.bfloat16)
    heads = 4 * 2048 * 256 + 256 * (3072 + 27648 + 12288 + 3072) + 2  # compress, expand, alpha
    assert sum(p.numel() for name, p in predictor.named_parameters() if name.startswith("heads")) == heads


def test_a_config_survives_json():
    assert QueryConfig.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG


def test_two_targets_may_not_share_rows():
    layers = (LayerSpec("w", None, 4, 8), LayerSpec("w", (0, 4), 4, 4))
    with pytest.raises(I2LError, match="adapted layers overlap"):
        QueryConfig(hidden=8, blocks=1, heads=1, code=2, rank=1, token_dim=4, layers=layers)
