"""The image encoders of i2L version 1 among the user's models: recognised by what is in the files, never by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...encoders import DINOV3, KINDS, SIGLIP2, PooledConfig, peek_pooled
from ...errors import I2LError
from ...files.atomic import SUFFIX
from ...predictors.published import published_encoder
from ..folders import PREDICTORS, fingerprint, register_predictors

CLIP_VISION = "clip_vision"


@dataclass(frozen=True)
class EncoderFile:
    """`id` changes when the file does."""

    path: Path
    config: PooledConfig
    id: str


@dataclass(frozen=True)
class EncoderPair:
    """SigLIP2 and DINOv3 for one predictor, as far as they are there, and files that are of another size."""

    files: Mapping[str, EncoderFile]  # by kind
    others: tuple[EncoderFile, ...] = ()

    def describe(self) -> str:
        """One line for people: what is there, and what to download."""
        parts = [f"{kind} in {file.path}" for kind, file in self.files.items()]
        return "; ".join(parts + self._advice())

    def complete(self, title: str) -> Mapping[str, EncoderFile]:
        """Both files. Raises I2LError that says what `title` lacks, what to download, and where it belongs."""
        advice = self._advice()
        if advice:
            sizes = ", ".join(f"{file.path} is {file.config}" for file in self.others)
            found = f" (of another size: {sizes})" if sizes else ""
            raise I2LError(
                f"{title} looks at pictures through encoders that are missing{found}. {'; '.join(advice)}"
            )
        return self.files

    def _advice(self) -> list[str]:
        missing = [kind for kind in (SIGLIP2, DINOV3) if kind not in self.files]
        return [f"{kind}: get {published_encoder(KINDS[kind].file)}" for kind in missing]


def find_encoders(width: int) -> EncoderPair:
    """The two files whose embeddings together have this width; of equal ones the first."""
    files = list(_encoder_files())
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


def _encoder_files() -> Iterator[EncoderFile]:
    """All of either kind, of any size."""
    register_predictors()
    for folder in (CLIP_VISION, PREDICTORS):
        for name in folder_paths.get_filename_list(folder):
            path = folder_paths.get_full_path(folder, name) if name.endswith(SUFFIX) else None
            if path is None:
                continue
            id = f"{path} {fingerprint(Path(path))}"
            config = _recognised(path, id)
            if config is not None:
                yield EncoderFile(Path(path), config, id)


@functools.lru_cache(maxsize=1024)
def _recognised(path: str, id: str) -> PooledConfig | None:
    """`id`: of the file as it is now, so that a changed one is read again."""
    return peek_pooled(Path(path))
