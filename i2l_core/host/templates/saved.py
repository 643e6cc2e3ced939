"""What a template made, as a file among the predictors, and back: a template that takes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import I2LError
from ...files.atomic import safe_join
from ...kv_caches.sides import Sides, load_sides, save_sides
from ...predictors.template.inputs import Input, check_takes, described
from ..folders import predictor_roots, with_slashes
from .base import Made, Progress, Template, TemplateInputs, with_inputs


@dataclass(frozen=True)
class SavedCache:
    """`name`: as Load Template lists it."""

    name: str
    nbytes: int

    def __str__(self) -> str:
        return f"saved as {self.name}, {self.nbytes / 1e6:.0f} MB"


@dataclass(frozen=True, eq=False)
class CacheTemplate(Template):
    """A saved cache."""

    path: Path
    sides: Sides

    @property
    def name(self) -> str:
        return self.path.stem

    def describe(self) -> str:
        sides = (self.sides.positive, self.sides.negative)
        size = "; ".join("nothing" if one is None else f"{one.tokens} tokens" for one in sides)
        return f"saved cache of {self.sides.made_by or 'a template'}\npositive and negative: {size}"

    def get_models(self) -> list[Any]:
        return []

    def check(self, given: Input) -> str:
        check_takes(self.name, given, "nothing")
        return described(self.name, given)

    def make(self, given: Input, progress: Progress) -> Made:
        self.check(given)
        return Made(self.sides.positive, self.sides.negative)


def save_template_cache(value: TemplateInputs | Template, filename: str, progress: Progress) -> SavedCache:
    """Save both sides under `filename` in the first folder of predictors, or under its next free number.

    Raises I2LError as the template does, for a name that leaves the folder, and for a disk that refuses.
    """
    inputs = with_inputs(value)
    folder = predictor_roots()[0]
    path = safe_join(folder, filename)
    made = inputs.make(lambda done, of: progress(done, of + 1))
    if made.positive is None and made.negative is None:
        raise I2LError(f"{inputs.template.name} made no cache that could be saved")
    saved = save_sides(Sides(made.positive, made.negative, str(inputs)), path)
    progress(3, 3)
    return SavedCache(with_slashes(str(saved.relative_to(folder.resolve()))), saved.stat().st_size)


def open_cache(path: Path) -> CacheTemplate:
    return CacheTemplate(path, load_sides(path))
