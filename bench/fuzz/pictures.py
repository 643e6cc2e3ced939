"""Picture files of every format: refused, or accepted with the pixels that Pillow decodes, in the documented form."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from i2l_core.files.pictures import FORMATS
from i2l_core.inspection import inspect_path
from i2l_core.references.files import read_reference
from i2l_core.train.data.data_set import open_rgb

from .case import Case, Wrong
from .values import damaged_bytes

# format -> (modes it is written in, options of one of its files)
_WRITTEN: dict[str, tuple[tuple[str, ...], tuple[dict[str, Any], ...]]] = {
    "PNG": (("1", "L", "LA", "RGB", "RGBA", "P", "I;16"), ({}, {"transparency": 0}, {"optimize": True})),
    "JPEG": (("L", "RGB", "CMYK"), ({}, {"progressive": True}, {"quality": 30})),
    "WEBP": (("RGB", "RGBA"), ({}, {"lossless": True})),
    "GIF": (("L", "P", "RGB"), ({}, {"transparency": 0}, {"save_all": True})),
    "TIFF": (
        ("1", "L", "RGB", "RGBA", "CMYK", "F", "I", "I;16", "P"),
        ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}),
    ),
    "BMP": (("1", "L", "RGB", "RGBA", "P"), ({},)),
    "AVIF": (("RGB", "RGBA"), ({"quality": 50, "speed": 10},)),
    "PPM": (("L", "RGB"), ({},)),
    "TGA": (("RGB", "RGBA"), ({},)),
    "ICO": (("RGBA",), ({},)),
    "EPS": (("RGB",), ({},)),
    "PCX": (("L", "RGB"), ({},)),
    "JPEG2000": (("RGB",), ({},)),
}
_ALLOWED = tuple(name for name in _WRITTEN if name in FORMATS)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".bmp", ".avif")
_SIDES = (8, 9, 16, 23, 40)
_LIES = (0, 1, 7, 255, 20_000, 65_535, 1 << 16, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
# width, height and colour of small files; those of at most 16 million pixels are decoded
_BOMBS = (
    (9000, 9000, 0),
    (6300, 6300, 2),
    (4000, 4000, 2),
    (4000, 4000, 3),
    (65_535, 1300, 0),
    (12_000, 12_000, 0),
)
_OTHERS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    b"<svg/>",
    b"%PDF-1.4",
    b"8BPS\0\1",
)


def picture(rng: random.Random, folder: Path) -> Case:
    bomb = rng.random() < 0.01
    content = _bomb(*rng.choice(_BOMBS)) if bomb else _content(rng)
    path = folder / f"a{rng.choice(_SUFFIXES)}"
    path.write_bytes(content)
    largest = 1024 if bomb else rng.choice((None, None, 16))
    first = rng.random() < 0.5

    def check() -> None:
        inspect_path(path)
        if bomb:  # what it holds is known, and decoding it again would take the time that is allowed
            read_reference(path, largest=largest) if first else open_rgb(path, "a row")
            return
        (_check_reference if first else _check_rgb)(path, content, largest)

    return Case(content, check)


def _check_reference(path: Path, content: bytes, largest: int | None) -> None:
    found = read_reference(path, largest=largest).pixels.numpy()
    expected = _rgb(_decoded(content))
    if largest is not None and max(expected.shape) > largest:
        if max(found.shape) > largest:
            raise Wrong(f"it has {found.shape}, asked for a longest side of {largest}")
        return
    if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-6):
        raise Wrong(f"read_reference has {_said(found)}, Pillow decodes {_said(expected)}")


def _check_rgb(path: Path, content: bytes, _: int | None) -> None:
    found = np.asarray(open_rgb(path, "a row")).astype(np.float32) / 255
    expected = _rgb(_decoded(content))
    if found.shape != expected.shape or not np.allclose(found, expected, atol=1.01 / 255):
        raise Wrong(f"open_rgb has {_said(found)}, Pillow decodes {_said(expected)}")


def _decoded(content: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content))
        if image.format not in FORMATS:
            raise Wrong(f"a file of the format {image.format} was accepted")
        return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> np.ndarray[Any, Any]:
    """(H, W, 3) float32, 0..1: gray of 16 bits and of floats as they are, alpha over white."""
    if image.mode[0] in "IF":
        values = np.asarray(image).astype(np.float64) / (65535 if image.mode[0] == "I" else 1)
        if values.min() < 0 or values.max() > 1:
            raise Wrong(f"values from {values.min():g} to {values.max():g} of white were accepted")
        return values.astype(np.float32)[..., None].repeat(3, 2)
    if image.has_transparency_data:
        values = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
        return values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
    return np.asarray(image.convert("RGB")).astype(np.float32) / 255


def _said(values: np.ndarray[Any, Any]) -> str:
    return f"{values.shape} of mean {values.mean():.4f}"


def _content(rng: random.Random) -> bytes:
    match rng.randrange(20):
        case 0:
            return rng.choice(_OTHERS) + rng.randbytes(rng.randrange(64))
        case 1:
            return _written(rng, rng.choice([name for name in _WRITTEN if name not in _ALLOWED]))
    name = rng.choice(_ALLOWED)
    content = _written(rng, name)
    match rng.randrange(5):
        case 0:
            return content
        case 1:
            return content[: rng.randrange(len(content) + 1)]
        case 2:
            return _lying(rng, name, content)
        case 3:  # the head says what the picture is
            end = min(len(content), 64)
            return damaged_bytes(rng, content[:end], 2) + content[end:]
        case _:
            return damaged_bytes(rng, content)


def _written(rng: random.Random, name: str) -> bytes:
    modes, options = _WRITTEN[name]
    mode, chosen = rng.choice(modes), dict(rng.choice(options))
    width, height = rng.choice(_SIDES), rng.choice(_SIDES)
    image = _image(rng, mode, width, height)
    if chosen.get("save_all"):
        chosen["append_images"] = [_image(rng, mode, width, height) for _ in range(2)]
    if mode not in ("L", "P", "RGB") and "transparency" in chosen:
        del chosen["transparency"]
    if mode == "RGB" and "transparency" in chosen:
        chosen["transparency"] = (image.getpixel((0, 0))) if name == "PNG" else 0
    if name in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((1, 2, 3, 5, 6, 8) if name == "TIFF" else (1, 2, 3, 5, 6, 8, 9, 0, 65535))
        chosen["exif"] = exif
    file = io.BytesIO()
    image.save(file, name, **chosen)
    return file.getvalue()


def _image(rng: random.Random, mode: str, width: int, height: int) -> Image.Image:
    values = np.random.default_rng(rng.randrange(1 << 30))
    if mode == "F":
        low, high = rng.choice(((0, 1), (0, 1), (0, 255), (-1, 1), (0, np.nan), (0, np.inf)))
        return Image.fromarray((low + (high - low) * values.random((height, width))).astype(np.float32))
    if mode.startswith("I"):
        limit = 65536 if mode == "I;16" else rng.choice((256, 65536, 1 << 17, 1 << 31))
        dtype = np.uint16 if mode == "I;16" else np.int32
        return Image.fromarray(values.integers(0, limit, (height, width)).astype(dtype))
    return Image.fromarray(values.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA").convert(mode)


def _lying(rng: random.Random, name: str, content: bytes) -> bytes:
    """Another width or height in the header than the pixels have."""
    lie = rng.choice(_LIES)
    data = bytearray(content)
    which = rng.randrange(2)
    try:
        match name:
            case "PNG":  # width, height; with a right checksum
                struct.pack_into(">I", data, 16 + 4 * which, lie)
                struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
            case "JPEG":
                start = min(i for mark in (b"\xff\xc0", b"\xff\xc2") if (i := content.find(mark)) >= 0)
                struct.pack_into(">H", data, start + 5 + 2 * which, lie & 0xFFFF)
            case "GIF":  # of the screen, or of the first picture
                start = 6 if rng.random() < 0.5 else content.index(b"\x2c", 13) + 5
                struct.pack_into("<H", data, start + 2 * which, lie & 0xFFFF)
            case "BMP":
                struct.pack_into("<I", data, 18 + 4 * which, lie)
            case "TIFF":
                tag = content.index(struct.pack("<H", 256 + which) + b"\4\0", 8) if rng.random() < 0.7 else 8
                struct.pack_into("<I", data, tag + 8, lie)
            case "WEBP":
                struct.pack_into("<I", data, 24 + 2 * which, lie)
            case _:
                start = content.index(b"ispe") + 8
                struct.pack_into(">I", data, start + 4 * which, lie)
    except (ValueError, struct.error):  # it has no such place
        return damaged_bytes(rng, content)
    return bytes(data)


def _bomb(width: int, height: int, colour: int) -> bytes:
    """A small PNG of many equal pixels. `colour`: 0 gray, 2 RGB, 3 palette."""
    row = b"\0" * (1 + width * (3 if colour == 2 else 1))
    packer = zlib.compressobj(9)
    body = b"".join([packer.compress(row) for _ in range(height)] + [packer.flush()])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(6))] if colour == 3 else []
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IDAT", body), (b"IEND", b"")]
    )


MAKERS = {"picture": picture}
