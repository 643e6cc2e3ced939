"""Image encoder files of version 1, and which two of them belong to a predictor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import I2LError
from .v1 import DINOV3, KINDS, MODEL_ID, SIGLIP2, PooledConfig


@dataclass(frozen=True)
class EncoderFile:
    """`id` changes when the file does."""

    path: Path
    config: PooledConfig
    id: str


@dataclass(frozen=True)
class EncoderPair:
    """The SigLIP2 and DINOv3 files for one predictor, as far as found, and encoder files of other sizes."""

    files: Mapping[str, EncoderFile]  # by kind
    others: tuple[EncoderFile, ...] = ()

    def describe(self) -> str:
        """One line for people: what was found, and what to download."""
        parts = [f"{kind} in {file.path}" for kind, file in self.files.items()]
        return "; ".join(parts + self._advice())

    def complete(self, title: str, hint: str = "") -> Mapping[str, EncoderFile]:
        """Both files. Raises I2LError that says what `title` lacks, what to download, and where it belongs."""
        advice = self._advice()
        if advice:
            sizes = ", ".join(f"{file.path} is {file.config}" for file in self.others)
            of_another_size = f" (of another size: {sizes})" if sizes else ""
            raise I2LError(
                f"{title} needs image encoders that are missing{of_another_size}. "
                + "; ".join([*advice, *([hint] if hint else [])])
            )
        return self.files

    def _advice(self) -> list[str]:
        missing = [kind for kind in (SIGLIP2, DINOV3) if kind not in self.files]
        return [f"{kind}: get {where_to_get(KINDS[kind].file)}" for kind in missing]


def where_to_get(file: str) -> str:
    """Where an encoder file is published, and the folder it goes into."""
    folder = f"models/clip_vision/{PurePosixPath(file).parent}"
    return f"{file} of https://modelscope.cn/models/{MODEL_ID} into {folder}"


def pair_of_width(width: int, files: Iterable[EncoderFile]) -> EncoderPair:
    """The two files whose embedding widths add up to `width`; the first pair if there are several."""
    files = list(files)
    kinds = {kind: [file for file in files if file.config.kind == kind] for kind in (SIGLIP2, DINOV3)}
    for siglip2 in kinds[SIGLIP2]:
        for dinov3 in kinds[DINOV3]:
            if siglip2.config.width + dinov3.config.width == width:
                return EncoderPair({SIGLIP2: siglip2, DINOV3: dinov3})
    # one of a pair alone tells of the other only at the published size
    one = {}
    if width == sum(KINDS[kind].width for kind in kinds):
        one = {kind: file for kind in kinds for file in kinds[kind] if file.config.width == KINDS[kind].width}
    return EncoderPair(one, tuple(file for file in files if file not in one.values()))
