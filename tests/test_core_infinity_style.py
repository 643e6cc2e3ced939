"""A style from pictures: how they are fitted, weighed, and what of the structure is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.blend import REPLACE, BlendSettings, style_part
from i2l.i2l_core.infinity.scales import Scales
from i2l.i2l_core.infinity.style import CONTAIN, COVER, StyleSettings, fitted, style_of_pictures
from i2l.i2l_core.references import Reference

SCALES = Scales(((1, 1), (2, 2), (3, 2), (6, 4)), (12, 8))


def encode(pictures: torch.Tensor) -> torch.Tensor:
    """A linear stand-in for the VAE: means of cells of 16 pixels, mixed into 5 channels."""
    mix = torch.linspace(-1, 1, 15).view(5, 3, 1, 1)
    return F.conv2d(F.avg_pool2d(pictures, 16), mix)


def reference(seed: int, weight: float = 1.0, mask: torch.Tensor | None = None) -> Reference:
    return Reference(torch.rand(96, 64, 3, generator=torch.Generator().manual_seed(seed)), weight, mask)


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = torch.randint(0, 256, (32, 48, 3)) / 255
    for fit in (COVER, CONTAIN):
        torch.testing.assert_close(fitted(pixels, 32, 48, fit)[0].permute(1, 2, 0), pixels)


@pytest.mark.parametrize("turned", [False, True])
def test_cover_crops_the_middle_and_contain_frames_in_the_mean_colour(turned):
    stripes = torch.zeros(32, 96, 3)
    stripes[:, 32:64, 0] = 1
    expected = torch.zeros(3, 32, 32)
    expected[0] = 1
    pixels = stripes.transpose(0, 1) if turned else stripes
    torch.testing.assert_close(fitted(pixels, 32, 32, COVER)[0], expected)
    framed = fitted(pixels, 96, 96, CONTAIN)[0]
    framed = framed.transpose(1, 2) if turned else framed
    torch.testing.assert_close(framed[:, 32:64], stripes.permute(2, 0, 1))
    frame = torch.tensor([85 / 255, 0, 0]).view(3, 1, 1).expand(3, 32, 96)
    torch.testing.assert_close(framed[:, :32], frame)
    torch.testing.assert_close(framed[:, 64:], frame)


def test_the_part_is_that_of_the_feature_after_the_step():
    settings = StyleSettings(BlendSettings(REPLACE, step=2))
    found = style_of_pictures([reference(1)], settings, encode, SCALES, False)
    picture = fitted(reference(1).pixels, 96, 64, COVER)
    expected = features(encode(picture * 2 - 1), SCALES, False).sums[1]
    torch.testing.assert_close(found.part, expected)
    assert (found.structure, found.shared) == ((3, 4), True)


def test_references_are_weighed_and_those_of_weight_0_left_out():
    settings = StyleSettings()
    twice = style_of_pictures([reference(1), reference(1), reference(2)], settings, encode, SCALES, False)
    weighed = [reference(1, 2.0), reference(2), reference(3, 0.0)]
    found = style_of_pictures(weighed, settings, encode, SCALES, False).part
    torch.testing.assert_close(found, twice.part)
    alone = [style_of_pictures([reference(i)], settings, encode, SCALES, False).part for i in (1, 2)]
    assert alone[0] is not None
    assert alone[1] is not None
    torch.testing.assert_close(found, (2 * alone[0] + alone[1]) / 3)
    with pytest.raises(I2LError):
        style_of_pictures([reference(1, 0.0)], settings, encode, SCALES, False)


def test_what_a_mask_hides_has_the_mean_colour_of_the_rest():
    mask = torch.zeros(96, 64)
    mask[:48] = 1
    masked = reference(1, 1.0, mask)
    plain = style_of_pictures([masked.mask_filled()], StyleSettings(), encode, SCALES, False)
    found = style_of_pictures([masked], StyleSettings(), encode, SCALES, False)
    assert found.part is not None
    assert plain.part is not None
    assert torch.equal(found.part, plain.part)
    whole = style_of_pictures([reference(1)], StyleSettings(), encode, SCALES, False)
    assert whole.part is not None
    assert not torch.equal(found.part, whole.part)


@pytest.mark.parametrize(
    ("changes", "count", "expected"),
    [
        ({}, 13, (4, 13)),
        ({"structure_end": 0.77}, 13, (4, 10)),
        ({"structure_end": 0.2}, 13, None),
        ({"keep_structure": False}, 13, None),
        ({"blend": BlendSettings(step=1)}, 7, (2, 7)),
    ],
)
def test_where_the_structure_is_kept(changes, count, expected):
    assert StyleSettings(**changes).structure(count) == expected


def test_bad_settings_are_refused_in_one_sentence():
    with pytest.raises(I2LError, match="end from 0 to 1, got nan"):
        StyleSettings(structure_end=float("nan"))
    with pytest.raises(I2LError, match="fit of cover, contain, got stretch"):
        StyleSettings(fit="stretch")
    with pytest.raises(I2LError, match="style scale from 1 to 4, got 5"):
        style_of_pictures([reference(1)], StyleSettings(BlendSettings(step=5)), encode, SCALES, False)
    own = style_part([torch.zeros(1, 5, 6, 4)], [1.0], BlendSettings())
    assert StyleSettings().styling([own], [1.0], SCALES).part is not None
