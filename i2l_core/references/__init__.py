"""Reference pictures: single pictures from IMAGE batches, each with its own size, weight and mask."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import shown
from ..errors import I2LError
from ..ranges import check_range, mask_values

MIN_SIDE = 8  # pixels; below this a picture shows no style
MAX_ASPECT = 16  # longer side over shorter side
GRAY = 128 / 255  # the neutral picture of the paper, section 3.4

_ROWS = 1 << 20  # values that are converted at once


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference picture with its weight and mask.

    `picture`: (H, W, 1, 3 or 4), floats 0..1 or bytes, as given: it is read and never written to, and only `pixels`
    converts it, one picture at a time. A copy of each would take 9 GB for 64 photos.
    `weight`: finite, 0 or more; 2 equals giving the picture twice, 0 leaves it out.
    `mask`: (h, w) of any size, 0..1, 1 where the style is taken from; None means everywhere. `full_mask` has the size
    of the picture. `clamp`: the picture may have values slightly outside of 0..1, which are cut off.
    `hash`: sha256 of size and pixels in hex; `mask_hash` likewise, empty without a mask.
    Raises I2LError for an invalid weight or mask.
    """

    picture: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    clamp: bool = False
    hash: str = field(init=False)
    mask_hash: str = field(init=False)

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        object.__setattr__(self, "picture", self.picture.detach())
        mask, digest = _checked_mask(self.mask, self.size)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "mask_hash", digest)
        object.__setattr__(self, "hash", _hash(self.size, (self._rgb(rows) for rows in _rows(self.size))))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels"""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def pixels(self) -> Tensor:
        """(H, W, 3) float32, 0..1, where the picture is; the picture itself where it is that already."""
        plain = self.picture.dtype == torch.float32 and self.picture.shape[-1] == 3 and not self.clamp
        return self.picture if plain and self.picture.is_contiguous() else self._copy()

    @property
    def full_mask(self) -> Tensor | None:
        """(H, W) float32, 0..1, on the CPU; None: everywhere"""
        return None if self.mask is None else _resized(self.mask, self.size)

    def mask_filled(self) -> Reference:
        """The picture with its masked-out part filled with the mean colour of the rest, and without a mask.

        A picture without a mask is returned unchanged.
        """
        mask = self.full_mask
        if mask is None:
            return self
        visible = mask[..., None].to(self.picture.device)
        filled = self._copy().mul_(visible)
        mean = filled.sum(dim=(0, 1)) / visible.sum()
        for rows in _rows(self.size):
            filled[rows] += mean * (1 - visible[rows])
        return Reference(filled, self.weight)

    def _copy(self) -> Tensor:
        """The pixels in memory of their own."""
        pixels = self.picture.new_empty((*self.size, 3), dtype=torch.float32)
        for rows in _rows(self.size):
            pixels[rows] = self._rgb(rows)
        return pixels

    def _rgb(self, rows: slice) -> Tensor:
        """(rows, W, 1 | 3 | 4) -> (rows, W, 3) float32: alpha over white, one channel repeated"""
        part = self.picture[rows]
        part = part.float() / 255 if part.dtype == torch.uint8 else part.float()
        if self.clamp:
            part = part.clamp(0, 1)
        if part.shape[-1] == 4:
            colour, alpha = part[..., :3], part[..., 3:]
            return colour * alpha + (1 - alpha)
        return part.expand(-1, -1, 3)


def with_positive_weight(references: Sequence[Reference]) -> list[Reference]:
    """The references with a weight above 0. Raises I2LError if there is none."""
    found = [reference for reference in references if reference.weight > 0]
    if not found:
        raise I2LError("the weights of all references are 0; give at least one of them a weight above 0")
    return found


Batch = Tensor | Sequence[Reference]


def references_from(batches: Mapping[str, Batch | None] | Sequence[Batch | None]) -> list[Reference]:
    """Every picture of every batch, in order.

    `batches`: IMAGE tensors (B, H, W, C), floats 0..1, C = 1, 3 or 4, or lists of references; by input name,
    or in order as image0, image1, ... None: the input is not connected. Alpha is composited over white, one channel
    is repeated, values slightly outside of 0..1 are clamped.

    Raises I2LError naming the input ("images.image1", and which picture of a batch) when there is no picture
    at all, a batch is empty or not an image, or a picture is too small, too narrow, not finite or not in 0..1.
    """
    if not isinstance(batches, Mapping):
        batches = {f"image{i}": batch for i, batch in enumerate(batches)}
    references = []
    for name, batch in batches.items():
        if batch is not None:
            references += _references(f"images.{name}", batch)
    if not references:
        raise I2LError("images: expected at least one reference picture, got none; connect an image")
    return references


def references_with(image: Batch, weight: float, mask: Tensor | None = None) -> list[Reference]:
    """The references of one IMAGE batch (or a list of references), with a weight, and one mask or one per picture.

    The weight of a reference is multiplied by `weight`, and its mask by `mask`: (H, W) or (N, H, W), N = 1 or the
    number of pictures, of any size: it is resized to the pictures.
    Raises I2LError as `references_from` and `Reference` do.
    """
    references = _references("image", image)
    _check_weight(weight)
    masks: list[Tensor | None] = [None] * len(references)
    if mask is not None:
        if not _is_plain(mask) or mask.ndim not in (2, 3) or 0 in mask.shape:
            raise I2LError(f"mask: expected a MASK (height, width), got {_said(mask)}")
        batch = mask.reshape(-1, *mask.shape[-2:])
        if len(batch) not in (1, len(references)):
            raise I2LError(
                f"mask: got {len(batch)} masks for {len(references)} pictures; give one, or one for each"
            )
        masks = list(batch.expand(len(references), -1, -1))
    return [_narrowed(reference, weight, part) for reference, part in zip(references, masks, strict=True)]


def check_size(name: str, height: int, width: int) -> None:
    """Raise I2LError for a picture that is too small or too narrow for a reference."""
    if min(height, width) < MIN_SIDE:
        raise I2LError(
            f"{name}: the picture is {width}x{height}; a reference needs at least {MIN_SIDE} pixels a side"
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise I2LError(
            f"{name}: the picture is {width}x{height}; a reference may be at most {MAX_ASPECT} times as long "
            "as wide, crop it first"
        )


def bytes_of(pixels: Tensor) -> Tensor:
    """(H, W, 3) floats 0..1 -> uint8 on the CPU, rounded, some rows at a time"""
    values = torch.empty(pixels.shape, dtype=torch.uint8)
    for rows in _rows(pixels.shape):
        values[rows] = (pixels[rows] * 255).round().to("cpu", torch.uint8)
    return values


def gray(like: Reference | tuple[int, int]) -> Reference:
    """The neutral picture: 128/255 everywhere, of the size of `like` (or (height, width))."""
    height, width = like.size if isinstance(like, Reference) else like
    return Reference(torch.full((height, width, 3), GRAY))


def _rows(size: Sequence[int]) -> Iterator[slice]:
    """Some rows of (height, width, ...) at a time, so that nothing of the size of a photo is made beside it."""
    height, width = size[:2]
    step = max(1, _ROWS // max(1, 4 * width))
    return (slice(top, top + step) for top in range(0, height, step))


def _narrowed(reference: Reference, weight: float, mask: Tensor | None) -> Reference:
    """The reference with its weight and its mask multiplied by these."""
    if mask is None:
        mask = reference.mask
    elif reference.mask is not None:
        mask = _resized(reference.mask, reference.size) * _resized(
            mask_values("mask: it", mask), reference.size
        )
    return replace(reference, weight=weight * reference.weight, mask=mask)


def _references(name: str, batch: Batch) -> Sequence[Reference]:
    if isinstance(batch, Tensor):
        return _split(name, batch)
    if not isinstance(batch, Sequence) or not all(isinstance(one, Reference) for one in batch):
        raise I2LError(f"{name}: expected an IMAGE or a reference, got {shown(batch)}; connect a picture")
    return batch


def _split(name: str, batch: Tensor) -> list[Reference]:
    if not _is_plain(batch) or batch.ndim != 4 or not batch.is_floating_point():
        raise I2LError(
            f"{name}: expected an IMAGE, floats (batch, height, width, channels), got {_said(batch)}"
        )
    count, height, width, channels = batch.shape
    if count == 0:
        raise I2LError(f"{name}: expected at least one picture, got an empty batch")
    if channels not in (1, 3, 4):
        raise I2LError(f"{name}: expected 1, 3 or 4 channels (gray, RGB, RGBA), got {channels}")
    check_size(name, height, width)
    references = []
    for i, picture in enumerate(batch):
        where = f"{name} (picture {i + 1} of {count})" if count > 1 else name
        low, high = check_range(f"{where}: the picture", picture)
        references.append(Reference(picture, clamp=low < 0 or high > 1))
    return references


def _check_weight(weight: float) -> None:
    if type(weight) not in (int, float) or not 0 <= weight <= sys.float_info.max:  # NaN compares false
        raise I2LError(f"the weight of a reference must be a finite number, 0 or more, got {shown(weight)}")


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with numbers, in an ordinary layout, and not of 8 bit floats."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and not (value.is_floating_point() and value.dtype.itemsize == 1)
    )


def _said(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)


def _checked_mask(mask: Tensor | None, size: tuple[int, int]) -> tuple[Tensor | None, str]:
    """(h, w) of any size -> float32 on the CPU, at most as large as the picture, or None when it is one everywhere; and
    the hash of it as it is used."""
    if mask is None:
        return None, ""
    mask = mask_values("mask: it", mask).cpu()
    full = _resized(mask, size)
    if not full.any():
        raise I2LError(
            "mask: it is black everywhere, so no part of the picture is used; paint white where the style is, "
            "or disconnect it (Load Image gives a black mask for pictures without transparency)"
        )
    if bool((full == 1).all()):
        return None, ""
    return mask if mask.numel() <= full.numel() else full, _hash(size, [full])


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> `size`, 0..1."""
    mask = mask.detach().to("cpu", torch.float32)
    if tuple(mask.shape) != size:
        mask = F.interpolate(mask[None, None], size, mode="bilinear", antialias=True)[0, 0]
    return mask.clamp(0, 1).contiguous()


def _hash(size: tuple[int, int], parts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(f"{size[0]}x{size[1]};".encode())
    for part in parts:
        digest.update(part.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
