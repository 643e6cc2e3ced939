"""The table of scales: literal figures of the released schedules."""

from __future__ import annotations

import pytest

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.scales import RATIOS, SIZES, Scales, nearest, scales_of

ROWS = [(ratio, size) for ratio in RATIOS for size in SIZES]


def test_there_are_fifteen_ratios_under_the_released_names() -> None:
    assert RATIOS == (
        0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8, 1.0, 1.25, 1.333, 1.5, 1.75, 2.0, 2.5, 3.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "size", "count", "third", "last", "tokens"),
    [
        (1.0, "0.06M", 7, (4, 4), (16, 16), 521),
        (1.0, "0.25M", 10, (4, 4), (32, 32), 2521),
        (1.0, "0.60M", 12, (4, 4), (48, 48), 6425),
        (1.0, "1M", 13, (4, 4), (64, 64), 10521),
        (2.0, "1M", 13, (4, 2), (90, 45), 11269),
        (1.5, "1M", 13, (3, 2), (78, 52), 10997),
        (0.571, "0.06M", 7, (3, 3), (12, 21), 472),
        (0.666, "1M", 13, (2, 3), (52, 78), 10997),
    ],
)
def test_known_schedules(
    ratio: float, size: str, count: int, third: tuple[int, int], last: tuple[int, int], tokens: int
) -> None:
    scales = scales_of(ratio, size)
    assert len(scales.maps) == count
    assert (scales.maps[2], scales.last) == (third, last)
    assert sum(scales.counts) == tokens


def test_positions_are_measured_on_the_last_scale_of_one_megapixel() -> None:
    assert {scales_of(1.5, size).reference for size in SIZES} == {(78, 52)}
    assert {scales_of(1.0, size).reference for size in SIZES} == {(64, 64)}


def test_pictures_have_the_released_sizes() -> None:
    assert scales_of(1.0, "1M").pixels == (1024, 1024)
    assert scales_of(1.5, "1M").pixels == (1248, 832)
    assert scales_of(2.0, "1M").pixels == (1440, 720)


@pytest.mark.parametrize(("ratio", "size"), ROWS)
def test_every_schedule_grows_from_one_place_and_turns_with_its_picture(ratio: float, size: str) -> None:
    scales = scales_of(ratio, size)
    assert scales.maps[:2] == ((1, 1), (2, 2))
    assert scales.last[0] / scales.last[1] == pytest.approx(ratio, rel=0.02)
    height, width = scales.pixels
    assert nearest(width, height) == scales
    turned = nearest(height, width)
    assert turned.maps == tuple((w, h) for h, w in scales.maps)


def test_nearest_takes_the_ratio_first_and_then_the_size() -> None:
    assert nearest(1000, 1010) == scales_of(1.0, "1M")
    assert nearest(600, 300) == scales_of(0.5, "0.25M")
    assert nearest(3000, 100) == scales_of(0.333, "0.25M")


def test_a_token_of_two_by_two_places_doubles_the_maps() -> None:
    scales = scales_of(1.333, "0.06M")
    assert scales.cells(True)[2] == (8, 6)
    assert scales.cells(False) == scales.maps


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(I2LError, match=r"height / width of 0.333.*got 1.1"):
        scales_of(1.1, "1M")
    with pytest.raises(I2LError, match=r"size of 0.06M.*got 2M"):
        scales_of(1.0, "2M")
    with pytest.raises(I2LError, match="got 0 x 5"):
        nearest(0, 5)
    with pytest.raises(I2LError, match="4 x 4 after 5 x 5"):
        Scales(((1, 1), (5, 5), (4, 4)), (5, 5))
    with pytest.raises(I2LError, match="at least one scale"):
        Scales((), (5, 5))
