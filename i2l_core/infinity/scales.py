"""The maps of growing size that Infinity draws a picture in: 15 aspect ratios, 4 sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import I2LError

# height / width of a picture -> height and width of its maps for 1 megapixel; a smaller size ends earlier.
# The tall ratios; a wide one is the tall one turned.
_TALL = {
    1.0: "1,1 2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    1.25: "1,1 2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    1.333: "1,1 2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    1.5: "1,1 2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    1.75: "1,1 2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    2.0: "1,1 2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    2.5: "1,1 2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    3.0: "1,1 2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}
_COUNTS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

CELL = 16  # pixels on a side of one place of the last map
SIZES = tuple(_COUNTS)


def _parsed(text: str) -> tuple[tuple[int, int], ...]:
    pairs = (pair.split(",") for pair in text.split())
    return tuple((int(height), int(width)) for height, width in pairs)


def _all_ratios() -> dict[float, tuple[tuple[int, int], ...]]:
    tall = {ratio: _parsed(text) for ratio, text in _TALL.items()}
    wide = {int(1000 / r) / 1000: tuple((w, h) for h, w in maps) for r, maps in tall.items() if r > 1}
    return dict(sorted({**tall, **wide}.items()))


_MAPS = _all_ratios()
RATIOS = tuple(_MAPS)  # height / width, from wide to tall


@dataclass(frozen=True)
class Scales:
    """The maps of one picture, from one place to the last, each (height, width) in tokens, and the map that positions
    are measured on: that of the last scale at 1M, whatever the size. Raises I2LError for maps that shrink."""

    maps: tuple[tuple[int, int], ...]
    reference: tuple[int, int]

    def __post_init__(self) -> None:
        before = (1, 1)
        for height, width in (*self.maps, self.reference):
            if height < before[0] or width < before[1]:
                raise I2LError(
                    f"expected scales that grow up to their reference, got {height} x {width} after "
                    f"{before[0]} x {before[1]}; use the sizes of the list"
                )
            before = (height, width)
        if not self.maps:
            raise I2LError("expected at least one scale, got none; use the sizes of the list")

    @property
    def last(self) -> tuple[int, int]:
        return self.maps[-1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.maps)

    def cells(self, patchify: bool) -> tuple[tuple[int, int], ...]:
        """The maps in places of the picture coder's latent: twice as fine where a token holds 2 x 2 of them."""
        return tuple((2 * h, 2 * w) for h, w in self.maps) if patchify else self.maps

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.last[0] * CELL, self.last[1] * CELL


def scales_of(ratio: float, size: str) -> Scales:
    """The maps of a ratio of RATIOS and a size of SIZES. Raises I2LError for any other."""
    if ratio not in _MAPS:
        raise I2LError(
            f"expected a height / width of {', '.join(map(str, RATIOS))}, got {ratio}; choose one of them"
        )
    if size not in _COUNTS:
        raise I2LError(f"expected a size of {', '.join(SIZES)}, got {size}; choose one of them")
    maps = _MAPS[ratio]
    return Scales(maps[: _COUNTS[size]], maps[-1])


def nearest(width: int, height: int) -> Scales:
    """The ratio nearest to that of a picture, then the size with the nearest number of pixels. Both are compared by
    their quotients, so turning the picture turns the maps. Raises I2LError for a size that is not positive."""
    if width <= 0 or height <= 0:
        raise I2LError(f"expected a width and a height above 0, got {width} x {height}; set both")

    def stretch(ratio: float) -> float:
        last_height, last_width = _MAPS[ratio][-1]
        quotient = (height * last_width) / (width * last_height)
        return max(quotient, 1 / quotient)

    def growth(size: str) -> float:
        tall, wide = scales_of(ratio, size).pixels
        quotient = tall * wide / (width * height)
        return max(quotient, 1 / quotient)

    ratio = min(RATIOS, key=stretch)
    return scales_of(ratio, min(SIZES, key=growth))
