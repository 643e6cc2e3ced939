"""IMAGE batches -> references: every channel count, every refusal, and what a hash means."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.references import Reference, bytes_of, gray, references_from, references_with

# what may come as an IMAGE, from (B, H, W, 4) slightly beyond 0..1
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is used": lambda x: x[..., :3].clamp(0, 1),
    "beyond 0..1": lambda x: x[..., :3].contiguous(),
    "alpha": lambda x: x,
    "one channel": lambda x: x[..., :1].clamp(0, 1),
    "half": lambda x: x[..., :3].clamp(0, 1).half(),
    "channels first": lambda x: x[..., :3].clamp(0, 1).movedim(-1, 1).contiguous().movedim(1, -1),
}


def test_batches_of_different_sizes_become_single_pictures_in_order():
    first, second = torch.rand(2, 16, 24, 3), torch.rand(1, 40, 8, 3)
    found = references_from([first, None, second])
    assert [r.size for r in found] == [(16, 24), (16, 24), (40, 8)]
    for reference, pixels in zip(found, [first[0], first[1], second[0]], strict=True):
        torch.testing.assert_close(reference.pixels, pixels, rtol=0, atol=0)
        assert reference.pixels.dtype == torch.float32


def test_alpha_is_composited_over_white():
    rgba = torch.rand(1, 9, 10, 4)
    rgba[0, 0, 0, 3], rgba[0, 0, 1, 3] = 0, 1
    (reference,) = references_from([rgba])
    torch.testing.assert_close(reference.pixels, rgba[0, ..., :3] * rgba[0, ..., 3:] + 1 - rgba[0, ..., 3:])
    assert reference.pixels[0, 0].tolist() == [1, 1, 1]
    torch.testing.assert_close(reference.pixels[0, 1], rgba[0, 0, 1, :3])


def test_one_channel_is_repeated():
    mono = torch.rand(1, 9, 10, 1)
    (reference,) = references_from([mono])
    torch.testing.assert_close(reference.pixels, mono[0].repeat(1, 1, 3), rtol=0, atol=0)


def test_half_precision_is_read_and_values_are_clamped():
    (reference,) = references_from([torch.tensor([-0.5, 0.25, 2.0]).half().expand(1, 8, 8, 3)])
    assert reference.pixels.dtype == torch.float32
    assert reference.pixels[3, 3].tolist() == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("values", "said"),
    [([0.0, 200.0, 255.0], "0 to 255"), ([0.0, 0.0, 3.0], "0 to 3"), ([-1.0, 0.0, 1.0], "-1 to 1")],
)
def test_pictures_of_0_to_255_or_around_0_are_refused_and_not_clamped(values: list[float], said: str):
    """Clamped they would be white, or lose their dark half, without a word."""
    wrong = torch.tensor(values).expand(2, 8, 8, 3).clone()
    wrong[0] = 0.5
    message = (
        rf"^images\.image0 \(picture 2 of 2\): the picture has values from {said}, expected 0 to 1; divide"
    )
    with pytest.raises(I2LError, match=message):
        references_from([wrong])


def test_the_cure_for_nan_is_said():
    with pytest.raises(I2LError, match=r"the picture holds NaN or infinite values; .*--fp32-vae"):
        references_from([torch.full((1, 8, 8, 3), float("inf"))])


@pytest.mark.parametrize("value", ["photo.png", 3, {"image0": 1}])
def test_what_is_no_picture_is_said(value: object):
    wrong: Any = {"image0": torch.rand(1, 8, 8, 3), "image1": value}
    with pytest.raises(I2LError, match=r"^images\.image1: expected an IMAGE or a reference, got .*connect"):
        references_from(wrong)


@pytest.mark.parametrize(
    "odd",
    [
        torch.rand(1, 8, 8, 3).to(torch.float8_e4m3fn),
        torch.rand(1, 8, 8, 3).to_sparse(),
        torch.rand(1, 8, 8, 3, device="meta"),
        [torch.rand(1, 8, 8, 3)],
        [None],
    ],
    ids=["8 bits", "sparse", "meta", "list of tensors", "list of nothing"],
)
def test_tensors_that_are_no_pictures_are_said(odd: Any):
    with pytest.raises(I2LError, match="image: expected an IMAGE"):
        references_with(odd, 1.0)
    if isinstance(odd, Tensor):
        with pytest.raises(I2LError, match=r"mask: expected a MASK \(height, width\), got torch\.float"):
            references_with(torch.rand(1, 8, 8, 3), 1.0, odd[..., 0])


@pytest.mark.parametrize("weight", [None, "1", {}, 10**400, math.nan])
def test_weights_that_are_no_numbers_are_said(weight: Any):
    with pytest.raises(I2LError, match="the weight of a reference must be a finite number, 0 or more, got"):
        references_with(torch.rand(1, 8, 8, 3), weight)


def test_a_mask_that_is_no_tensor_is_said():
    mask: Any = [[1.0]]
    with pytest.raises(I2LError, match=r"mask: expected a MASK .*, got list"):
        references_with(torch.rand(1, 8, 8, 3), 1.0, mask)


def test_a_mask_of_0_to_255_is_refused():
    with pytest.raises(I2LError, match=r"^mask: it has values from 0 to 255, expected 0 to 1"):
        references_with(torch.rand(1, 8, 8, 3), 1.0, torch.tensor([0.0, 255.0]).repeat(8, 4))


def test_a_reference_of_references_multiplies_weights_and_masks():
    mask, other = torch.rand(8, 8), torch.rand(8, 8)
    first, second = references_with(torch.rand(2, 8, 8, 3), 2.0, mask)
    (one, two) = references_with([first, second], 1.5, other)
    assert (one.weight, one.hash, two.hash) == (3.0, first.hash, second.hash)
    assert one.mask is not None
    torch.testing.assert_close(one.mask, mask * other)
    (plain,) = references_with([first], 1.0)
    assert (plain.weight, plain.mask_hash) == (2.0, first.mask_hash)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_hash_are_those_of_a_whole_copy(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Converted some rows at a time, or not at all: bit for bit the same, and the input stays as it is."""
    monkeypatch.setattr("i2l.i2l_core.references._ROWS", 7 * 4 * 40)
    batch = KINDS[kind](torch.rand(2, 33, 40, 4) * 1.5 - 0.2)
    before, mask = batch.clone(), torch.rand(33, 40)
    for reference, picture in zip(references_with(batch, 1.0, mask), batch, strict=True):
        x = picture.float().clamp(0, 1)
        x = x[..., :3] * x[..., 3:] + (1 - x[..., 3:]) if x.shape[-1] == 4 else x.expand(-1, -1, 3)
        x = x.contiguous()
        assert torch.equal(reference.pixels, x)
        assert reference.pixels.is_contiguous()
        assert reference.hash == hashlib.sha256(b"33x40;" + x.numpy().tobytes()).hexdigest()
        visible = mask[..., None]
        mean = (x * visible).sum(dim=(0, 1)) / visible.sum()
        assert torch.equal(reference.mask_filled().pixels, x * visible + mean * (1 - visible))
        assert torch.equal(bytes_of(x), (x * 255).round().to(torch.uint8))
    assert torch.equal(batch, before)


def test_a_hash_is_the_sha256_of_size_and_pixels():
    pixels = torch.rand(8, 12, 3)
    reference = Reference(pixels)
    assert reference.hash == hashlib.sha256(b"8x12;" + pixels.numpy().tobytes()).hexdigest()
    assert Reference(pixels.clone()).hash == reference.hash
    assert Reference(pixels.reshape(12, 8, 3)).hash != reference.hash
    changed = pixels.clone()
    changed[7, 11, 2] += 1e-6
    assert Reference(changed).hash != reference.hash


def test_gray_is_128_of_255_and_as_large_as_its_model():
    like = Reference(torch.rand(20, 30, 3))
    for neutral in (gray(like), gray((20, 30))):
        assert neutral.size == (20, 30)
        assert (neutral.pixels * 255).round().unique().tolist() == [128]


@pytest.mark.parametrize(("width", "height"), [(8, 8), (128, 8), (8, 128)])
def test_the_limits_themselves_are_allowed(width: int, height: int):
    assert len(references_from([torch.rand(1, height, width, 3)])) == 1


NAN = torch.rand(2, 8, 8, 3)
NAN[1, 2, 3, 0] = float("nan")

REFUSED = {
    "nothing": ([], r"^images: expected at least one reference picture, got none"),
    "not connected": ([None], r"^images: expected at least one"),
    "empty batch": ([torch.rand(1, 8, 8, 3), torch.rand(0, 8, 8, 3)], r"^images\.image1: .* empty batch"),
    "1x1": ([torch.rand(1, 1, 1, 3)], r"^images\.image0: the picture is 1x1; .* at least 8 pixels"),
    "no pixels": ([torch.rand(1, 0, 9, 3)], r"^images\.image0: the picture is 9x0"),
    "20000x30": (
        [torch.rand(1, 1, 1, 3).expand(1, 30, 20000, 3)],
        r"^images\.image0: .* 20000x30; .* 16 times",
    ),
    "two channels": ([torch.rand(1, 8, 8, 2)], r"^images\.image0: expected 1, 3 or 4 channels .* got 2"),
    "a mask": ([torch.rand(1, 8, 8)], r"^images\.image0: expected an IMAGE"),
    "bytes": ([torch.zeros(1, 8, 8, 3, dtype=torch.uint8)], r"^images\.image0: expected an IMAGE, floats"),
    "nan": ([NAN], r"^images\.image0 \(picture 2 of 2\): .* NaN"),
    "by name": ({"image7": torch.rand(1, 2, 8, 3)}, r"^images\.image7: the picture is 8x2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_pictures_are_refused_by_name_in_one_line(case: str):
    batches, message = REFUSED[case]
    with pytest.raises(I2LError, match=message) as caught:
        references_from(batches)
    assert "\n" not in str(caught.value)
