"""Fusions against dense matrices in fp64: sums, best approximations, reweighted spectra, the way between two."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.mixing import fuse, slerp
from i2l.i2l_core.mixing.slerp import Slerp
from i2l.i2l_core.mixing.spectrum import cosine, energy

D_OUT, D_IN = 12, 7
ROWS = ((0, 4), (4, 4), (8, 4))  # q, k, v
LIMIT = 1e-9

# on a busy machine drawing LoRAs may take long
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def interpolate(a: LoRA, b: LoRA, t: float, rank: int | None = None):
    return slerp.interpolate([a, b], Slerp.between([a, b], [1.0, 1.0]), t, rank)


def layer(k: int, d_in: int = D_IN, d_out: int = D_OUT, dtype=torch.float64) -> LowRank:
    return LowRank(torch.randn(k, d_in, dtype=dtype), torch.randn(d_out, k, dtype=dtype))


def size(lora: LoRA) -> float:
    return float(energy(lora)) ** 0.5


def dense(lora: LoRA) -> dict[str, torch.Tensor]:
    """Every weight's change as a full matrix, rows in their place."""
    found: dict[str, torch.Tensor] = {}
    for target, part in lora.layers.items():
        delta = part.to(dtype=torch.float64).delta()
        if target.rows is not None:
            start, length = target.rows
            delta = torch.nn.functional.pad(delta, (0, 0, start, D_OUT - start - length))
        found[target.weight] = found.get(target.weight, 0) + delta
    return found


def dense_sum(loras, weights) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for lora, weight in zip(loras, weights, strict=True):
        for name, delta in dense(lora).items():
            found[name] = found.get(name, 0) + weight * delta
    return found


def assert_equal(actual: dict, expected: dict, limit: float = LIMIT) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name].double(), rtol=limit, atol=limit)


@st.composite
def lora_sets(draw, most: int = 3):
    """LoRAs of any ranks on some of three weights: the same way of addressing "qkv" or not, and their weights."""
    torch.manual_seed(draw(st.integers(0, 999)))
    rank = st.integers(1, 5)
    loras = []
    for number in range(draw(st.integers(1, most))):
        layers = {Target("out"): layer(draw(rank))} if draw(st.booleans()) else {}
        way = draw(st.sampled_from(["whole", "rows", "one row", "none"])) if layers else "rows"
        if way == "whole":
            layers[Target("qkv")] = layer(draw(rank))
        elif way != "none":
            layers |= {
                Target("qkv", rows): layer(draw(rank), d_out=4)
                for rows in ROWS[: 1 if way == "one row" else 3]
            }
        loras.append(
            LoRA(layers, base_model=draw(st.sampled_from(["", "z-image"])), references=(str(number),))
        )
    if not any(target.rows is None for lora in loras for target in lora.layers):
        loras[0] = LoRA(
            {**loras[0].layers, Target("qkv", ROWS[2]): layer(1, d_out=4)}
        )  # so that the width is known
    weight = st.sampled_from([-1.5, 0.25, 1.0, 2.0])
    return loras, [draw(weight) for _ in loras]


# the sum


@given(lora_sets())
@quick
def test_concat_is_the_exact_sum(case):
    loras, weights = case
    fused = fuse.concat(loras, weights)
    assert_equal(dense(fused), dense_sum(loras, weights))
    assert fused.references == tuple(name for lora in loras for name in lora.references)
    assert fused.base_model in {lora.base_model for lora in loras}


def test_ranks_add_up_and_ways_of_addressing_meet_only_where_they_differ():
    whole = LoRA({Target("qkv"): layer(2), Target("out"): layer(3)})
    rows = LoRA({Target("qkv", rows): layer(2, d_out=4) for rows in ROWS})
    other_rows = LoRA({Target("qkv", ROWS[0]): layer(5, d_out=4)})
    assert {t: part.rank for t, part in fuse.concat([rows, other_rows], [1, 1]).layers.items()} == {
        Target("qkv", ROWS[0]): 7,
        Target("qkv", ROWS[1]): 2,
        Target("qkv", ROWS[2]): 2,
    }
    assert {t: part.rank for t, part in fuse.concat([whole, rows], [1, 1]).layers.items()} == {
        Target("qkv"): 8,
        Target("out"): 3,
    }


def test_rows_that_overlap_meet_on_the_width_that_the_base_model_has():
    a = LoRA({Target("layers.0.attention.qkv", (0, 4)): layer(1, d_out=4)}, base_model="z-image")
    b = LoRA({Target("layers.0.attention.qkv", (2, 4)): layer(1, d_out=4)})
    fused = fuse.concat([a, b], [1, 1])
    (only,) = fused.layers.values()
    assert list(fused.layers) == [Target("layers.0.attention.qkv")]
    assert only.d_out == 12


def test_what_a_fusion_is_for():
    a = LoRA({Target("x"): layer(1)}, "", "one", ("r1", "r2"))
    b = LoRA({Target("x"): layer(1)}, "z-image", "two", ("r2", "r3"))
    fused = fuse.concat([a, b, a], [1, 1, 1])
    assert (fused.base_model, fused.predictor) == ("z-image", "one + two")
    assert fused.references == ("r1", "r2", "r3")
    assert fuse.concat([a, a], [1, 2]).predictor == "one"


def test_weight_0_is_the_same_as_leaving_it_out():
    a, b = LoRA({Target("x"): layer(2)}, references=("a",)), LoRA({Target("y"): layer(1)}, references=("b",))
    fused = fuse.concat([a, b], [1, 0])
    assert fused.layers.keys() == a.layers.keys()
    assert fused.references == ("a",)


# the best approximation


@given(lora_sets(), st.integers(1, 6))
@quick
def test_svd_error_is_what_eckart_and_young_say(case, rank):
    loras, weights = case
    exact = fuse.concat(loras, weights)
    fused, report = fuse.svd(loras, weights, rank)
    assert fused.layers.keys() == exact.layers.keys() == report.ranks.keys()
    lost = total = 0.0
    for target, part in fused.layers.items():
        assert part.rank == report.ranks[target] <= rank
        delta = exact.layers[target].delta()
        squares = torch.linalg.svdvals(delta).square()
        error = (delta - part.delta()).square().sum()
        torch.testing.assert_close(error, squares[rank:].sum(), rtol=LIMIT, atol=LIMIT)
        lost, total = lost + float(error), total + float(squares.sum())
    assert report.error == pytest.approx(math.sqrt(lost / total), abs=1e-6)
    assert report.energy + report.error**2 == pytest.approx(1)


@given(lora_sets(), st.sampled_from([0.3, 0.8, 0.99, 1.0]))
@quick
def test_svd_by_energy_takes_the_smallest_rank_of_each_layer(case, share):
    loras, weights = case
    exact = fuse.concat(loras, weights)
    fused, report = fuse.svd(loras, weights, energy=share)
    for target, part in fused.layers.items():
        squares = torch.linalg.svdvals(exact.layers[target].delta()).square()
        kept = squares.cumsum(0) / squares.sum()
        assert kept[part.rank - 1] >= share - 1e-9
        assert part.rank == 1 or kept[part.rank - 2] < share
    assert report.energy >= share - 1e-9
    assert fuse.svd(loras, weights, rank=2, energy=share)[1].ranks == {
        target: min(2, rank) for target, rank in report.ranks.items()
    }


def test_rank_above_what_is_there_changes_nothing():
    loras = [LoRA({Target("x"): layer(2)}), LoRA({Target("x"): layer(3)})]
    fused, report = fuse.svd(loras, [1, 1], 99)
    assert_equal(dense(fused), dense_sum(loras, [1, 1]))
    assert (report.error, report.energy, report.ranks) == (0, 1, {Target("x"): 5})


def test_what_is_there_twice_takes_no_rank():
    lora = LoRA({Target("x"): layer(3), Target("y"): layer(2)})
    fused, report = fuse.svd([lora, lora], [1, -0.5])
    assert list(report.ranks.values()) == [3, 2]
    assert_equal(dense(fused), {name: delta / 2 for name, delta in dense(lora).items()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_types_are_computed_and_returned_in_fp32(dtype):
    loras = [LoRA({Target("x"): layer(8, 96, 64, dtype)}) for _ in range(2)]
    weights = [0.3, 0.7]
    expected = dense_sum(loras, weights)["x"]
    squares = torch.linalg.svdvals(expected).square()
    for fused, lost in (
        (fuse.concat(loras, weights), 0.0),
        (fuse.svd(loras, weights, 5)[0], squares[5:].sum()),
        (fuse.spectral(loras, weights, 0.0)[0], 0.0),
    ):
        (part,) = fused.layers.values()
        assert part.up.dtype is torch.float32
        error = (part.delta().double() - expected).square().sum()
        assert float(error - lost) == pytest.approx(0, abs=1e-9 * float(squares.sum()))


def test_small_directions_survive_in_fp32():
    """Singular values over five orders of magnitude, in factors that share them out unevenly."""
    values = torch.logspace(0, -5, 12)
    u, v = torch.linalg.qr(torch.randn(80, 12)).Q, torch.linalg.qr(torch.randn(60, 12)).Q
    mix = torch.randn(12, 12)
    lora = LoRA({Target("x"): LowRank(torch.linalg.inv(mix) @ v.T, u * values @ mix)})
    exact = dense(lora)["x"]
    squares = torch.linalg.svdvals(exact).square()
    for rank in (1, 4, 8, 11):
        error = (dense(fuse.svd([lora], [1], rank)[0])["x"] - exact).norm()
        assert float(error) == pytest.approx(float(squares[rank:].sum().sqrt()), rel=0.05, abs=2e-6)


def test_batches_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch):
    loras = [LoRA({Target(f"x{i}"): layer(3) for i in range(7)}) for _ in range(2)]
    one, _ = fuse.svd(loras, [1, 1], 2)
    monkeypatch.setattr(fuse, "_BATCH", 1)
    other, _ = fuse.svd(loras, [1, 1], 2)
    assert_equal(dense(one), dense(other))


def test_no_dense_matrix_is_ever_made():
    class Largest(TorchFunctionMode):
        elements = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    a, b = (LoRA({Target("x"): layer(2, 400, 300, torch.float32)}) for _ in range(2))
    with Largest() as seen:
        fuse.svd([a, b], [1, 1], 2)
        fuse.spectral([a, b], [1, 1], 1.0)
        interpolate(a, b, 0.5, 2)
    assert 0 < seen.elements <= 4 * 400


# reweighted spectra


@given(lora_sets(), st.sampled_from([0.0, 0.3, 1.0, 2.0]))
@quick
def test_spectral_is_the_sum_of_reweighted_styles(case, alpha):
    loras, weights = case
    expected = []
    for lora in loras:
        layers = {}
        for target, part in lora.layers.items():
            u, s, v = torch.linalg.svd(part.delta(), full_matrices=False)
            layers[target] = LowRank(v, u * s * torch.exp(-alpha * torch.arange(len(s))))
        expected.append(LoRA(layers))
    fused, report = fuse.spectral(loras, weights, alpha)
    assert_equal(dense(fused), dense_sum(expected, weights), 1e-6)
    kept = sum(w**2 * float(energy(lora)) for w, lora in zip(weights, expected, strict=True))
    total = sum(w**2 * float(energy(lora)) for w, lora in zip(weights, loras, strict=True))
    assert report.energy == pytest.approx(kept / total)


@given(lora_sets())
@quick
def test_spectral_with_alpha_0_is_concat(case):
    loras, weights = case
    fused, report = fuse.spectral(loras, weights, 0.0)
    assert_equal(dense(fused), dense_sum(loras, weights))
    assert (report.error, report.energy) == (0, pytest.approx(1))


def test_spectral_with_large_alpha_keeps_the_first_direction_as_it_is():
    lora = LoRA({Target("x"): layer(5)})
    fused, report = fuse.spectral([lora], [1], 50.0)
    assert_equal(dense(fused), dense(fuse.svd([lora], [1], 1)[0]))
    assert report.ranks == {Target("x"): 1}


# the way between two


def pair() -> tuple[LoRA, LoRA]:
    a = LoRA({Target("x"): layer(2), Target("y"): layer(1)}, references=("a",))
    return a, LoRA({Target("x"): layer(3), Target("z"): layer(2)}, references=("b",))


@pytest.mark.parametrize("rank", [None, 3])
def test_the_ends_are_the_inputs_exactly(rank):
    a, b = pair()
    for t, end in ((0.0, a), (1.0, b)):
        found, report = interpolate(a, b, t, rank)
        assert found.layers.keys() == end.layers.keys()
        for target, part in end.layers.items():
            assert torch.equal(found.layers[target].up, part.up)
            assert torch.equal(found.layers[target].down, part.down)
        assert found.references == end.references
        assert report.error == 0


def test_rank_on_the_way_is_no_more_than_asked_for():
    a, b = pair()
    found, report = interpolate(a, b, 0.4, 2)
    assert max(report.ranks.values()) == found.rank == 2
    best, _ = fuse.svd([interpolate(a, b, 0.4)[0]], [1], 2)
    assert_equal(dense(found), dense(best))


@given(st.integers(0, 99), st.floats(0, 1))
@quick
def test_size_goes_evenly_from_end_to_end(seed, t):
    torch.manual_seed(seed)
    a, b = pair()
    if cosine(a, b) < 0:
        b = b.scaled(-1)
    found, _ = interpolate(a, b, t)
    assert size(found) == pytest.approx((1 - t) * size(a) + t * size(b))
    angle = math.acos(float(cosine(a, b)))
    assert math.acos(min(1.0, float(cosine(a, found)))) == pytest.approx(t * angle, abs=1e-6)


def test_it_is_the_change_that_is_interpolated_and_not_its_factors():
    a, b = pair()
    other = LoRA(
        {
            t: LowRank(torch.linalg.inv(m) @ p.down, p.up @ m)
            for t, p in b.layers.items()
            for m in [turned(p.rank)]
        }
    )
    for function in (
        lambda x, y: interpolate(x, y, 0.3)[0],
        lambda x, y: fuse.svd([x, y], [1, 2], 2)[0],
        lambda x, y: fuse.spectral([x, y], [1, 2], 0.7)[0],
    ):
        assert_equal(dense(function(a, b)), dense(function(a, other)), 1e-6)


def turned(rank: int) -> torch.Tensor:
    return torch.randn(rank, rank, dtype=torch.float64) + 3 * torch.eye(rank, dtype=torch.float64)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_between_strengths_of_one_lora_lie_its_strengths(t):
    a, _ = pair()
    found, _ = interpolate(a, a.scaled(3), t)
    assert_equal(dense(found), dense(a.scaled(1 + 2 * t)))
    references_with, _ = slerp.interpolate([a, a], Slerp.between([a, a], [1, 3]), t)
    assert_equal(dense(references_with), dense(found))


def test_opposed_loras_are_not_blown_up():
    a, _ = pair()
    assert size(interpolate(a, a.scaled(-1), 0.5)[0]) == pytest.approx(0, abs=1e-6 * size(a))
    shares = Slerp.between([a, a.scaled(-1)], [1, 1]).weights(0.5)
    assert shares == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    assert Slerp.between([a, a], [1, -2]).weights(0.5) == pytest.approx(
        (1.5 * math.sqrt(0.5), -1.5 * math.sqrt(0.5))
    )
    nothing = a.scaled(0)
    assert_equal(dense(interpolate(a, nothing, 0.25)[0]), dense(a.scaled(0.75)))


# what is zero, equal or of rank 1


@pytest.mark.parametrize("kind", ["zero", "equal", "rank 1", "opposite"])
def test_edge_cases_stay_finite_and_exact(kind):
    a = LoRA({Target("x"): layer(1 if kind == "rank 1" else 3)})
    a = a.scaled(0) if kind == "zero" else a
    b = {"equal": a, "opposite": a.scaled(-1)}.get(kind, LoRA({Target("x"): layer(1)}))
    for one, two in ((a, a), (a, b), (b, a)):
        loras = [one, two]
        exact = dense_sum(loras, [1, 1])
        assert_equal(dense(fuse.svd(loras, [1, 1], energy=1.0)[0]), exact)
        assert_equal(dense(fuse.spectral(loras, [1, 1], 0.0)[0]), exact)
        for fused, report in (fuse.svd(loras, [1, 1], 1), fuse.spectral(loras, [1, 1], 2.0)):
            fused.check_finite()
            assert 0 <= report.error <= 1
            assert 0 <= report.energy <= 1
        interpolate(one, two, 0.5)[0].check_finite()


def test_a_zero_layer_stays_in_the_lora():
    zero = LoRA({Target("x"): layer(3).scaled(0)})
    fused, report = fuse.svd([zero], [1], 2)
    assert report == fuse.FusionReport(0.0, 1.0, {Target("x"): 1})
    assert not dense(fused)["x"].any()


@pytest.mark.parametrize("kind", ["zero", "equal", "far"])
def test_gradients_of_sums_and_ways_are_finite(kind):
    a = LoRA({Target("x"): layer(2)})
    start = {"zero": a.scaled(0), "equal": a, "far": LoRA({Target("x"): layer(2)})}[kind]
    factors = [
        factor.clone().requires_grad_() for part in start.layers.values() for factor in (part.down, part.up)
    ]
    b = LoRA({Target("x"): LowRank(*factors)})
    (fuse.concat([a, b], [1, 0.5]).layers[Target("x")].delta().sum()).backward()
    (interpolate(a, b, 0.5)[0].layers[Target("x")].delta().sum()).backward()
    for factor in factors:
        assert factor.grad is not None
        assert factor.grad.isfinite().all()
        assert kind == "zero" or factor.grad.any()
    for fused, _ in (fuse.svd([a, b], [1, 1], 1), fuse.spectral([a, b], [1, 1], 1.0)):
        assert not any(p.up.requires_grad or p.down.requires_grad for p in fused.layers.values())


# bad input

A, B = LoRA({Target("x"): LowRank(torch.ones(1, 2), torch.ones(3, 1))}, "z-image"), None
KLEIN = LoRA({Target("x"): LowRank(torch.ones(1, 2), torch.ones(3, 1))}, "flux2-klein-4b")
WIDE = LoRA({Target("x"): LowRank(torch.ones(1, 9), torch.ones(3, 1))})
BROKEN = LoRA({Target("x"): LowRank(torch.full((1, 2), math.nan), torch.ones(3, 1))})


@pytest.mark.parametrize(
    ("loras", "weights", "message"),
    [
        ([], [], "at least one LoRA, got none"),
        ([A], [1, 1], "one weight for each LoRA, got 2 for 1"),
        ([A, A], [0, 0], "all weights are 0"),
        ([A, A], [1, math.nan], "the weight of LoRA 2 must be a finite number, got nan"),
        ([A, A], [math.inf, 1], "the weight of LoRA 1 must be a finite number, got inf"),
        ([A, BROKEN], [1, 1], "LoRA 2: the LoRA layer of x holds NaN"),
        ([A, WIDE, KLEIN], [1, 1, 1],
         r"LoRA 1 is for Z-Image \(z-image\), LoRA 3 for FLUX.2 klein 4B \(flux2-klein-4b\)"),
        ([A, WIDE], [1, 1], "different base models: x is 3x2 in one and 3x9 in another"),
    ],
)  # fmt: skip
def test_what_cannot_be_fused_is_refused_in_one_line(loras, weights, message):
    for function in (
        fuse.concat,
        lambda *args: fuse.svd(*args, rank=1),
        lambda *args: fuse.spectral(*args, alpha=1.0),
    ):
        with pytest.raises(I2LError, match=message) as caught:
            function(loras, weights)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fuse.svd([A], [1], rank=0), "rank must be a whole number from 1 up, got 0"),
        (lambda: fuse.svd([A], [1], energy=0.0), "energy must be a fraction above 0 and up to 1, got 0.0"),
        (lambda: fuse.svd([A], [1], energy=1.5), "got 1.5"),
        (lambda: fuse.svd([A], [1], energy=math.nan), "got nan"),
        (lambda: fuse.spectral([A], [1], -0.1), "alpha must be a number from 0 up, got -0.1"),
        (lambda: fuse.spectral([A], [1], math.nan), "alpha must be"),
        (lambda: interpolate(A, A, 1.1), r"t must be a number from 0 .* got 1.1"),
        (lambda: interpolate(A, A, math.nan), "got nan"),
        (lambda: interpolate(A, KLEIN, 0.5), "LoRA 1 is for Z-Image"),
        (lambda: interpolate(A, BROKEN, 0.5), "LoRA 2: .* NaN"),
        (lambda: Slerp.between([A, A], [1, 0]), "neither weight may be 0"),
        (lambda: Slerp.between([A, A, A], [1, 1, 1]), "interpolation needs two LoRAs, got 3"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(I2LError, match=message):
        call()
