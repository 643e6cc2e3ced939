"""Schedules and curves of strength: what text means, and what is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.schedule import ALWAYS, NAMED, Curve, Schedule


def parse(text: str) -> Curve:
    curve = Curve.parse(text)
    assert curve is not None
    return curve


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-10, 10)), min_size=1, max_size=8), st.floats(0, 1))
def test_lines_between_points_and_level_outside(points, place):
    points = sorted(points, key=lambda point: point[0])
    curve = Curve(tuple(points))
    value = curve(place)
    assert min(y for _, y in points) - 1e-9 <= value <= max(y for _, y in points) + 1e-9
    if place < points[0][0]:
        assert value == points[0][1]
    if place >= points[-1][0]:
        assert value == points[-1][1]
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if x < place < next_x:
            assert value == pytest.approx(y + (next_y - y) * (place - x) / (next_x - x), abs=1e-9)


@pytest.mark.parametrize("text", ["0: 1, 0.5: 0.25, 1: 0", "0:1;.5:.25;1:0", " 0 : +1.0\n0.5:0.25,\n1:0, "])
def test_spellings(text: str):
    curve = parse(text)
    assert [curve(place) for place in (0, 0.25, 0.5, 0.75, 1)] == [1, 0.625, 0.25, 0.125, 0]


def test_a_jump_takes_the_later_strength():
    curve = parse("0: 1, 0.5: 1, 0.5: 0")
    assert (curve(0.4999), curve(0.5), curve(0.9)) == (1, 0, 0)


def test_names_are_curves_and_nothing_is_none():
    for name in NAMED:
        assert parse(name.upper()).points == parse(NAMED[name]).points
    assert (parse("fade out")(0.25), parse("fade in")(0.25)) == (0.75, 0.25)
    assert Curve.parse("  \n") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: 1, half: 2", r"the curve 'half: 2' cannot be read; write .* or one of: fade in"),
        ("strong", "the curve 'strong' cannot be read"),
        ("0: 1 1: 0", "cannot be read"),
        ("0: nan", "cannot be read"),
        ("0: 1e3", "cannot be read"),
        ("1: 0, 0: 1", "positions of a curve must rise from 0 to 1, got 1, 0"),
        ("0: 1, 2: 0", "positions of a curve must rise from 0 to 1, got 0, 2"),
        ("0: 11", "strengths of a curve must be from -10 to 10"),
        (",".join(["0: 1"] * 1001), "a curve has 1 to 1000 points, got 1001"),
        (",", "a curve has 1 to 1000 points, got 0"),
    ],
)
def test_what_is_no_curve(text: str, message: str):
    with pytest.raises(I2LError, match=message) as caught:
        Curve.parse(text)
    assert "\n" not in str(caught.value)


# when a LoRA acts


def test_a_schedule_is_constant_only_when_it_never_changes():
    assert ALWAYS == Schedule.parse(0.0, 1.0, " ") == Schedule()
    assert ALWAYS.is_constant
    for changing in (Schedule(start=0.1), Schedule(end=0.9), Schedule.parse(0.0, 1.0, "0: 1")):
        assert not changing.is_constant


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.8, 0.2, "is after end"),
        (-0.1, 1.0, "must be from 0 to 1"),
        (0.0, 1.1, "must be from 0 to 1"),
        (float("nan"), 1.0, "must be from 0 to 1"),
    ],
)
def test_a_schedule_checks_itself(start: float, end: float, message: str):
    with pytest.raises(I2LError, match=message):
        Schedule(start, end)
