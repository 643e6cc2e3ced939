"""Published predictors and the folders they go into, for errors and help pages.

Nothing is downloaded by this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Published:
    """A repository of DiffSynth-Studio on ModelScope: its files that are needed, and where they go.

    `files`: none means the whole repository, which is a folder for itself. `base_model`: id of what its LoRAs are
    for, as in `base_models`; empty when it is no predictor. `folder`: inside of models/. `one_picture`: it takes
    one, as a picture and not as a list.
    """

    name: str
    base_model: str
    files: tuple[str, ...] = ()
    folder: str = "i2l"
    one_picture: bool = False

    @property
    def url(self) -> str:
        return f"https://modelscope.cn/models/DiffSynth-Studio/{self.name}"

    def __str__(self) -> str:
        """What to get and where to put it, in one phrase."""
        if not self.files:
            return f"all files of {self.url} into models/{self.folder}/{self.name}"
        return f"{' and '.join(self.files)} of {self.url} into models/{self.folder}"


PUBLISHED = (
    # version 2: Diffusion Templates
    Published("ZImage-i2L-v2", "z-image"),
    Published("KleinBase4B-i2L-v2", "flux2-klein-4b"),
    Published("HidreamO1-i2L-v2", "hidream-o1"),
    Published("Template-KleinBase4B-ContentRef", "flux2-klein-4b", one_picture=True),
    # version 1
    Published("Z-Image-i2L", "z-image", ("model.safetensors",), "i2l/Z-Image-i2L"),
    Published("Z-Image-Omni-Base-i2L", "z-image", ("model.safetensors",), "i2l/Z-Image-Omni-Base-i2L"),
    Published(
        "Qwen-Image-i2L",
        "qwen-image",
        tuple(f"Qwen-Image-i2L-{kind}.safetensors" for kind in ("Style", "Coarse", "Fine", "Bias")),
    ),
)


@dataclass(frozen=True)
class Value:
    """The number that a published template takes: its name among the inputs of the program, and its range.

    `neutral`: what stands on the negative side. `factor`: what the number is multiplied with before its sinusoids.
    """

    name: str
    lowest: float
    neutral: float
    highest: float
    factor: float


@dataclass(frozen=True)
class PublishedTemplate(Published):
    """A template for FLUX.2 klein 4B that is no predictor. `takes`: the node that gives its inputs."""

    takes: Takes = "nothing"
    value: Value | None = None


Takes = Literal["nothing", "value", "colour", "picture", "inpaint", "settings"]

# inputs, neutral values and ranges: DiffSynth's examples of each; the factors: its training code
_SCALE = Value("scale", 0.0, 0.5, 1.0, 1000.0)
_TAKES: dict[str, tuple[Takes, Value | None]] = {
    "ControlNet": ("picture", None),
    "Edit": ("picture", None),
    "Upscaler": ("picture", None),
    "Inpaint": ("inpaint", None),
    "Brightness": ("value", _SCALE),
    "Sharpness": ("value", _SCALE),
    "Age": ("value", Value("age", 1.0, 45.0, 100.0, 10.0)),
    "SoftRGB": ("colour", None),
    "PandaMeme": ("nothing", None),
    "Aesthetic": ("settings", None),
}
TEMPLATES = tuple(
    PublishedTemplate(f"Template-KleinBase4B-{name}", "flux2-klein-4b", takes=takes, value=value)
    for name, (takes, value) in _TAKES.items()
)


def published_template(name: str) -> PublishedTemplate | None:
    """The published template of this name that is no predictor, ignoring case; None if unknown."""
    return next((one for one in TEMPLATES if one.name.lower() == name.lower()), None)


def published(name: str) -> Published | None:
    """The published predictor of this name, ignoring case; None if unknown."""
    return next((one for one in PUBLISHED if one.name.lower() == name.lower()), None)


def where_to_get(name: str) -> str:
    """Advice for missing files of a predictor: where to download them."""
    known = published(name) or published_template(name)
    return f"get {known}" if known else "get them from where it was published"
