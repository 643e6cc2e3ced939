"""Picture files of any format, upright and in the right colours, or a clear refusal."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.references.files import read_reference
from i2l.i2l_core.train.data.data_set import open_rgb


def colours(height: int = 24, width: int = 36, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8, smooth, every corner another colour"""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([x, y, 1 - x, 1 - y / 2][:channels], -1) * 255).astype(np.uint8)


def floats(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32) / 255)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "gif"])
def test_lossless_formats_are_read_as_they_are(tmp_path: Path, ending: str):
    values = colours() if ending != "gif" else np.tile(np.array([[[255, 0, 90]]], np.uint8), (24, 36, 1))
    Image.fromarray(values).save(tmp_path / f"a.{ending}", lossless=True)
    reference = read_reference(tmp_path / f"a.{ending}", 0.5)
    assert torch.equal(reference.pixels, floats(values))
    assert (reference.weight, reference.mask) == (0.5, None)
    assert reference.picture.dtype == torch.uint8  # a quarter of the memory


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path: Path, ending: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours()).save(tmp_path / f"a.{ending}", exif=exif, quality=95)
    found = read_reference(tmp_path / f"a.{ending}").pixels
    x = floats(colours())
    turned = {
        1: x,
        2: x.flip(1),
        3: x.flip(0, 1),
        4: x.flip(0),
        5: x.transpose(0, 1),
        6: x.transpose(0, 1).flip(1),
        7: x.transpose(0, 1).flip(0, 1),
        8: x.transpose(0, 1).flip(0),
    }[orientation]
    assert found.shape == turned.shape
    assert (found - turned).abs().mean() < 0.02  # JPEG


def test_transparency_shows_white(tmp_path: Path):
    values = colours(channels=4)
    rgba = Image.fromarray(values)
    share = floats(values[..., 3:])
    rgba.save(tmp_path / "rgba.png")
    found = read_reference(tmp_path / "rgba.png").pixels
    torch.testing.assert_close(found, floats(values[..., :3]) * share + 1 - share)

    palette = Image.fromarray(np.zeros((20, 20), np.uint8)).convert("P")
    palette.putpalette([200, 0, 0, 0, 0, 250])
    palette.putpixel((3, 5), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    found = read_reference(tmp_path / "palette.png").pixels
    assert torch.equal(found[5, 3], torch.tensor([0, 0, 250 / 255]))
    assert torch.equal(found[0, 0], torch.ones(3))

    gray = Image.merge("LA", (Image.new("L", (9, 9), 100), Image.new("L", (9, 9), 0)))
    gray.save(tmp_path / "gray.png")
    assert torch.equal(read_reference(tmp_path / "gray.png").pixels, torch.ones(9, 9, 3))


def test_gray_palette_one_bit_and_print_colours(tmp_path: Path):
    values = colours()
    cases = {
        "gray.png": (Image.fromarray(values[..., 0]), floats(values[..., :1]).expand(-1, -1, 3)),
        "one.png": (Image.new("1", (10, 10), 1), torch.ones(10, 10, 3)),
        "cmyk.tiff": (Image.fromarray(values).convert("CMYK"), floats(values)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        assert torch.equal(read_reference(tmp_path / name).pixels, expected), name


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_of_gray_keep_their_range(tmp_path: Path, ending: str):
    values = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    found = read_reference(tmp_path / f"deep.{ending}").pixels
    torch.testing.assert_close(
        found, torch.from_numpy(values.astype(np.float32) / 65535)[..., None].expand(-1, -1, 3)
    )


def test_an_animation_gives_its_first_picture(tmp_path: Path):
    pictures = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    assert torch.equal(read_reference(tmp_path / "a.gif").pixels[0, 0], torch.tensor([1.0, 0, 0]))


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path):
    Image.fromarray(colours(300, 300)).save(tmp_path / "whole.png")
    Image.fromarray(colours(300, 300)).save(tmp_path / "whole.jpg")
    Image.fromarray(colours(4, 36)).save(tmp_path / "small.png")
    Image.fromarray(colours(10, 400)).save(tmp_path / "long.png")
    for ending in ("png", "jpg"):
        content = (tmp_path / f"whole.{ending}").read_bytes()
        (tmp_path / f"cut.{ending}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"head.{ending}").write_bytes(content[:40])
        (tmp_path / f"noise.{ending}").write_bytes(content[:60] + bytes(range(256)) * 4)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in {
        "cut.png": "expected a picture",
        "cut.jpg": "expected a picture",
        "head.png": "expected a picture",
        "head.jpg": "expected a picture",
        "noise.png": "expected a picture",
        "noise.jpg": "expected a picture",
        "text.png": "expected a picture",
        "empty.png": "expected a picture",
        "none.png": "expected a picture .*No such file",
        ".": "expected a picture .*directory",
        "small.png": "the picture is 36x4; a reference needs at least 8 pixels a side",
        "long.png": "the picture is 400x10; a reference may be at most 16 times as long as wide",
    }.items():
        with pytest.raises(I2LError, match=message) as caught:
            read_reference(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


def test_a_picture_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(colours()).save(tmp_path / "bomb.png")
    with pytest.raises(I2LError, match="expected a picture"):
        read_reference(tmp_path / "bomb.png")


def test_gray_of_floats_is_read_as_it_is_and_refused_beyond_0_to_1(tmp_path: Path):
    values = np.linspace(0, 1, 24 * 36, dtype=np.float32).reshape(24, 36)
    Image.fromarray(values, "F").save(tmp_path / "gray.tiff")
    assert torch.equal(
        read_reference(tmp_path / "gray.tiff").pixels, torch.from_numpy(values)[..., None].expand(-1, -1, 3)
    )
    Image.fromarray(values * 255, "F").save(tmp_path / "large.tiff")
    with pytest.raises(
        I2LError, match=r"large\.tiff: it holds floating point values from 0 to 255, expected 0 to 1; save"
    ):
        read_reference(tmp_path / "large.tiff")
    assert open_rgb(tmp_path / "gray.tiff", "row 1").getpixel((35, 23)) == (255, 255, 255)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size < 100_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for read in (read_reference, lambda path: open_rgb(path, "row 1")):
            with pytest.raises(I2LError, match=r"20000x20000 pixels, more than 90 million|exceeds limit"):
                read(tmp_path / "small.png")


def test_formats_that_start_programs_are_never_opened(tmp_path: Path):
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.eps")
    (tmp_path / "picture.eps").rename(tmp_path / "picture.png")
    with pytest.raises(I2LError, match=r"picture\.png: expected a picture \(cannot identify image file"):
        read_reference(tmp_path / "picture.png")
    with pytest.raises(I2LError, match=r"row 1: the picture is broken or missing"):
        open_rgb(tmp_path / "picture.png", "row 1")


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_an_uncompressed_tiff_that_exif_turns_is_not_scrambled(tmp_path: Path, mode: str):
    """Pillow maps such files when it opens them by name."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(colours()).convert(mode)
    picture.save(tmp_path / "a.tiff", exif=exif)
    turned = np.rot90(np.asarray(picture.convert("RGB")), -1)
    assert torch.equal(read_reference(tmp_path / "a.tiff").pixels, floats(turned.copy()))
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.tiff", "row 1")), turned)


@pytest.mark.parametrize("values", [(0, 70_000), (-2, 100)])
def test_whole_numbers_beyond_16_bits_are_refused(tmp_path: Path, values: tuple[int, int]):
    Image.fromarray(np.linspace(*values, 400).astype(np.int32).reshape(20, 20)).save(tmp_path / "deep.tiff")
    for read in (read_reference, lambda path: open_rgb(path, "row 1")):
        with pytest.raises(
            I2LError, match=f"gray values from {values[0]} to {values[1]}, expected 16 bits, 0 to 65535; save"
        ):
            read(tmp_path / "deep.tiff")


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.new("L", (5000, 4000)).save(tmp_path / "empty.png")
    Image.new("L", (4000, 4000)).save(tmp_path / "smaller.png")
    assert read_reference(tmp_path / "smaller.png", largest=64).size == (64, 64)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for read in (read_reference, lambda path: open_rgb(path, "row 1")):
        with pytest.raises(I2LError, match=r"5000x4000 pixels in a file of \d+ bytes, so nearly all"):
            read(tmp_path / "empty.png")
