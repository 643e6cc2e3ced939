"""What an artist gives to a template, for both sides of CFG, in the shapes that published templates take.

`PublishedTemplate.takes` names the shape; DiffSynth's examples say what stands on the negative side: the neutral
value, the same picture with an empty prompt, nothing for colours, and the same for everything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import I2LError
from ...ranges import check_range, mask_values
from ..published import Value, published, published_template
from .pictures import gray_square

SIDE = 16  # pixels of a picture that are one token of FLUX.2
DEFAULT_FACTOR = 1000.0  # of the published value models but Age


@dataclass(frozen=True)
class ValueInput:
    """A number. `neutral`, `factor`: None stands for those that the template is published with."""

    value: float
    neutral: float | None = None
    factor: float | None = None

    def resolved(self, template: str, value: Value | None = None) -> Value:
        """With the neutral value and the factor of `value`, else of a published template of that name, which win over
        None only.

        Raises I2LError when the value is out of its range, and when the name is unknown and no neutral value is given.
        """
        known = published_template(template)
        value = value or (known.value if known else None)
        if value is None and self.neutral is None:
            raise I2LError(
                f"{template} is not the name of a published template, so nobody knows its neutral value: set neutral"
            )
        neutral = self.neutral if self.neutral is not None else value.neutral if value else math.nan
        factor = self.factor or (value.factor if value else DEFAULT_FACTOR)
        lowest, highest = (value.lowest, value.highest) if value else (-math.inf, math.inf)
        for name, number in (("value", self.value), ("neutral", neutral)):
            if not math.isfinite(number) or not lowest <= number <= highest:
                span = f" from {lowest:g} to {highest:g}" if value else ""
                raise I2LError(f"{template}: {name} must be a number{span}, got {number:g}")
        return Value(value.name if value else "", lowest, neutral, highest, factor)


@dataclass(frozen=True)
class ColourInput:
    """A colour, each part from 0 to 1. The negative side has none."""

    red: float
    green: float
    blue: float

    def __post_init__(self) -> None:
        for name, part in (("R", self.red), ("G", self.green), ("B", self.blue)):
            if not 0 <= part <= 1:
                raise I2LError(f"{name} must be a number from 0 to 1, got {part:g}")


@dataclass(frozen=True, eq=False)
class PictureInput:
    """A picture (1, H, W, 3), 0 to 1, and what it shows. `vae`, `clip`: the host's; None: not given."""

    picture: Tensor
    prompt: str
    vae: Any = None
    clip: Any = None

    def __post_init__(self) -> None:
        check_picture(self.picture)
        if not self.prompt.strip():
            raise I2LError(
                "prompt: expected what the picture shall show, got nothing; the negative side has no words"
            )


@dataclass(frozen=True, eq=False)
class InpaintInput:
    """A picture (1, H, W, 3) and a mask (1, H, W), 1 where it is drawn anew. `keep`: nothing else changes."""

    picture: Tensor
    mask: Tensor
    keep: bool = True
    vae: Any = None
    clip: Any = None

    def __post_init__(self) -> None:
        check_picture(self.picture)
        if tuple(self.mask.shape) != tuple(self.picture.shape[:3]):
            (height, width), size = (
                self.picture.shape[1:3],
                " x ".join(map(str, reversed(self.mask.shape[-2:]))),
            )
            many = f"{len(self.mask)} masks of " if self.mask.ndim == 3 and len(self.mask) != 1 else ""
            raise I2LError(
                f"mask: expected one of the picture's size, {width} x {height}, got {many}{size} pixels"
            )
        object.__setattr__(self, "mask", mask_values("mask: it", self.mask))


@dataclass(frozen=True, eq=False)
class SettingsInput:
    """Inputs of a program by its own names, for each side; None: the negative side has the same."""

    positive: Mapping[str, Any]
    negative: Mapping[str, Any] | None = None
    vae: Any = None
    clip: Any = None


@dataclass(frozen=True)
class NoInput:
    """The template takes nothing."""


Input = ValueInput | ColourInput | PictureInput | InpaintInput | SettingsInput | NoInput

_NODES = {
    "nothing": (NoInput, "it takes no inputs: connect Load Template to Apply Template"),
    "value": (ValueInput, "it takes a value: use Template Value"),
    "colour": (ColourInput, "it takes a colour: use Template Colour"),
    "picture": (PictureInput, "it takes a picture and a prompt: use Template Picture"),
    "inpaint": (InpaintInput, "it takes a picture and a mask: use Template Inpaint"),
    "settings": (SettingsInput, "it takes settings: use Template Settings"),
}


def described(template: str, given: Input, takes: str = "", known: Value | None = None) -> str:
    """One line for people. Raises I2LError as `check_takes` and `ValueInput.resolved` do."""
    check_takes(template, given, takes)
    if isinstance(given, ValueInput):
        return f"value {given.value:g}, neutral {given.resolved(template, known).neutral:g}"
    if isinstance(given, ColourInput):
        return "colour " + " ".join(f"{round(255 * part)}" for part in (given.red, given.green, given.blue))
    if isinstance(given, PictureInput | InpaintInput):
        height, width = given.picture.shape[1:3]
        more = "a mask" if isinstance(given, InpaintInput) else f"the prompt {given.prompt[:60]!r}"
        return f"picture of {width} x {height} and {more}"
    if isinstance(given, SettingsInput):
        return f"settings {', '.join(given.positive) or 'of no names'}"
    return "no inputs"


def check_takes(template: str, given: Input, takes: str = "") -> None:
    """Raise I2LError naming the right node when a published template, or one of a known kind, takes something else.

    Settings suit every template with a program: they are whatever it is called with.
    """
    known = published_template(template)
    takes = known.takes if known else takes
    if takes and not isinstance(given, _NODES[takes][0] | SettingsInput):
        raise I2LError(f"{template}: {_NODES[takes][1]}")


def check_picture(picture: Tensor) -> None:
    """Raise I2LError unless it is one picture of 0..1 whose sides are multiples of SIDE.

    Neither is repaired: a picture that is cropped or scaled does not fit what is drawn any more.
    """
    if len(picture) != 1:
        raise I2LError(
            f"a template takes one picture, got a batch of {len(picture)}: choose one with Image From Batch"
        )
    height, width = picture.shape[1:3]
    if height % SIDE or width % SIDE or not height * width:
        raise I2LError(
            f"a template needs a picture whose sides are multiples of {SIDE} pixels, got {width} x {height}: use Scale "
            f"Image to Total Pixels with resolution_steps {SIDE}"
        )
    check_range("the picture", picture)


def program_inputs(
    template: str, given: Input, names: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the program gets on the positive and on the negative side; None: that side does without it.

    `names`: the inputs that its process_inputs names; of a template that is not published they say what a value is
    called. The same dict stands for both sides where they are equal.
    """
    check_takes(template, given)
    if isinstance(given, ValueInput):
        value = given.resolved(template)
        name = value.name or _only(template, names)
        return {name: given.value}, {name: value.neutral}
    if isinstance(given, ColourInput):
        return {"R": given.red, "G": given.green, "B": given.blue}, None
    if isinstance(given, PictureInput):
        picture = picture_of(given.picture)
        predictor = published(template)
        if predictor and predictor.one_picture:
            return {"image": picture}, {"image": gray_square()}
        return {"image": picture, "prompt": given.prompt}, {"image": picture, "prompt": ""}
    if isinstance(given, InpaintInput):
        both = {"image": picture_of(given.picture), "mask": mask_of(given.mask)}
        return {**both, "force_inpaint": True} if given.keep else both, both
    if isinstance(given, SettingsInput):
        positive = dict(given.positive)
        return positive, positive if given.negative is None else dict(given.negative)
    nothing: dict[str, Any] = {}
    return nothing, nothing


def picture_of(picture: Tensor) -> Image.Image:
    """(1, H, W, 3) or more channels, 0 to 1 -> 8 bit RGB."""
    pixels = (picture[0, ..., :3].clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.numpy())


def mask_of(mask: Tensor) -> Image.Image:
    """(H, W) or (1, H, W), 0 to 1 -> 8 bit RGB, as a mask from a file is. Raises I2LError for anything else."""
    if mask.ndim not in (2, 3) or 0 in mask.shape or mask.numel() != math.prod(mask.shape[-2:]):
        raise I2LError(
            f"mask: expected one MASK (height, width), got {tuple(mask.shape)}; choose one of them"
        )
    mask = mask_values("mask: it", mask).reshape(1, *mask.shape[-2:])
    return picture_of(mask[..., None].expand(-1, -1, -1, 3))


def _only(template: str, names: Sequence[str]) -> str:
    if len(names) != 1:
        named = ", ".join(names) or "none by name"
        raise I2LError(
            f"{template}: its program takes {named}, so it is not known what a value is: use Template Settings"
        )
    return names[0]
