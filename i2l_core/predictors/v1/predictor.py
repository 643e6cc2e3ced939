"""Predictors of version 1: encode references to embeddings and predict a LoRA from them.

The runtime caches embeddings, so only new pictures are encoded. The predictor reads every weight once, so its weights
stay where they are and are copied to the device in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base_models import title_of
from ...encoders import DINOV3, KINDS, MODEL_ID, SIGLIP2
from ...encoders.files import EncoderFile, EncoderPair, pair_of_width
from ...encoders.picture_encoders import FileEncoder, PictureEncoder, file_encoder
from ...errors import I2LError
from ...lora import LoRA
from ...references import MIN_SIDE, Reference, gray, with_positive_weight
from ..base import (
    Family,
    NeutralCache,
    Options,
    Predictor,
    Progress,
    Runtime,
    Source,
    StyleAndNeutral,
    checked_prediction,
)
from ..memory import v1_memory
from .kinds import kind_of, recognise
from .network import LoadedV1, load_v1


@dataclass(frozen=True, eq=False)
class V1Predictor(Predictor):
    """A predictor file of version 1 and its encoders.

    `float8`: as in `Options`. `clip`: the CLIP of Qwen-Image, for predictors that read through it.
    """

    loaded: LoadedV1
    runtime: Runtime
    float8: bool | None = None
    clip: Any = None
    encoders: dict[str, FileEncoder] = field(default_factory=dict)  # by kind
    # by what looked at the gray picture
    neutrals: NeutralCache = field(default_factory=lambda: NeutralCache(1))

    @property
    def name(self) -> str:
        return self.loaded.name

    def describe(self) -> str:
        config = self.loaded.config
        size = sum(parameter.nbytes for parameter in self.loaded.predictor.parameters())
        return (
            f"i2L version 1, {config.title}, for {config.base_model.title}: rank {config.rank} per picture, "
            f"{len(config.adapted_layers)} layers, {size / 1e6:.0f} MB\n"
            f"encoders: {self._encoder_pair().describe()}"
            + ("; and the CLIP of Qwen-Image" if config.residual else "")
        )

    def get_models(self) -> list[Any]:
        return [encoder.held for encoder in self.encoders.values() if encoder.held is not None]

    def with_clip(self, clip: Any) -> V1Predictor:
        return replace(self, clip=clip)

    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> StyleAndNeutral:
        """References with a mask are filled where it is black; the weighted mean of the pictures' LoRAs is exact."""
        references = with_positive_weight(references)
        encoders = self._picture_encoders()
        key = " ".join(encoder.id for encoder in encoders)
        neutral = self.neutrals.get(key)
        blank = gray((MIN_SIDE, MIN_SIDE))  # of one colour: every size looks the same
        pictures = references if neutral is not None else [*references, blank]
        by_hash = {_seen_as(picture): picture for picture in pictures}
        known = [self._known(encoder, by_hash) for encoder in encoders]
        report = _counter(sum(len(by_hash) - len(seen) for seen in known) + 2, progress)

        for encoder, seen in zip(encoders, known, strict=True):
            self._look(encoder, by_hash, seen, report)
        embeddings = [torch.stack([seen[_seen_as(picture)] for picture in pictures]) for seen in known]
        count = len(references)
        lora = self._predict([part[:count] for part in embeddings], references)
        report()
        if neutral is None:
            # the mean of any number of equal pictures is one of them
            neutral = self.neutrals.keep(key, self._predict([part[count:] for part in embeddings], [blank]))
        report()
        return StyleAndNeutral(lora, neutral)

    def _dtype(self) -> torch.dtype:
        """What the encoders give and the predictor computes in."""
        return self.runtime.dtype(self.loaded.dtype)

    def _encoder_pair(self) -> EncoderPair:
        return pair_of_width(self.loaded.config.token_dim, self.runtime.encoder_files())

    def _picture_encoders(self) -> list[PictureEncoder]:
        """SigLIP2, DINOv3, and for some predictors the CLIP. Raises I2LError for what is missing."""
        config = self.loaded.config
        if config.residual is not None and self.clip is None:
            raise I2LError(
                f"{config.title} also needs the text encoder of Qwen-Image, which runs only in ComfyUI: connect "
                "Load CLIP (type qwen_image) to the clip of Images to LoRA"
            )
        files = self._encoder_pair().complete(config.title, self.runtime.encoder_hint)
        encoders: list[PictureEncoder] = [self._file_encoder(file) for file in files.values()]
        if config.residual is not None:
            encoders.append(self.runtime.clip_states(self.clip, config.residual, self._dtype()))
        return encoders

    def _file_encoder(self, file: EncoderFile) -> FileEncoder:
        """The encoder in memory, if its file has not changed."""
        encoder = file_encoder(file, self.runtime, self.loaded.dtype, self.float8)
        kept = self.encoders.get(file.config.kind)
        if kept is None or kept.id != encoder.id:
            self.encoders[file.config.kind] = kept = encoder
        return kept

    def _known(self, encoder: PictureEncoder, pictures: Mapping[str, Reference]) -> dict[str, Tensor]:
        """What it has seen of these pictures before, by their hashes."""
        embeddings = {hash: self.runtime.embeddings.get((encoder.id, hash)) for hash in pictures}
        return {hash: seen for hash, seen in embeddings.items() if seen is not None}

    def _look(
        self,
        encoder: PictureEncoder,
        pictures: Mapping[str, Reference],
        seen: dict[str, Tensor],
        report: Callable[[], None],
    ) -> None:
        """Complete what has been seen of these pictures; all on the CPU."""
        if seen.keys() == pictures.keys():
            return
        with encoder.ready() as look:
            for hash, picture in pictures.items():
                if hash not in seen:
                    seen[hash] = look(picture.mask_filled())
                    self.runtime.embeddings.keep((encoder.id, hash), seen[hash])
                    report()

    def _predict(self, seen: Sequence[Tensor], references: Sequence[Reference]) -> LoRA:
        self.runtime.check_cancelled()
        loaded, device = self.loaded, self.runtime.device
        self.runtime.free(v1_memory(loaded.config, len(references), self._dtype()))
        embeddings = torch.cat(list(seen[:2]), dim=1).to(device)
        residuals = seen[2].to(device) if loaded.config.residual else None
        lora = loaded.predictor(embeddings, [reference.weight for reference in references], residuals)
        hashes = tuple(reference.hash for reference in references)
        return replace(checked_prediction(lora, loaded.name), predictor=loaded.name, references=hashes)


def load_v1_predictor(path: str | Path, runtime: Runtime, options: Options) -> V1Predictor:
    """Read a predictor file of version 1. Raises I2LError as `load_v1` does; encoders are looked for later."""
    return V1Predictor(load_v1(path), runtime, options.float8)


def _seen_as(picture: Reference) -> str:
    """Equal for pictures that encoders see alike."""
    return picture.hash + picture.mask_hash


def _counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Reports one more step of `total` at each call."""
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return report


def _recognise(source: Source) -> bool:
    return source.header is not None and kind_of(source.header.shapes) is not None


def _describe(source: Source) -> tuple[str, str]:
    assert source.header is not None
    try:
        config = recognise(source.header.shapes)
    except I2LError as error:
        return f"an i2L predictor of version 1 that cannot be used: {error}", "download it again"
    needs = f"it needs {' and '.join(KINDS[kind].file for kind in (SIGLIP2, DINOV3))} of {MODEL_ID}"
    reads = ""
    if config.residual:
        side = f" of {config.residual.side}x{config.residual.side}" if config.residual.side else ""
        reads = (
            f", reads {config.residual.length} hidden states of Qwen-Image's text encoder per picture{side}"
        )
        needs += ", and Qwen-Image's CLIP in ComfyUI"
    return (
        f"{config.title}, an i2L predictor of version 1 for {title_of(config.base_model.id)}: rank {config.rank} per "
        f"picture, {len(config.adapted_layers)} layers, embeddings of width {config.token_dim}{reads}",
        f"put it into models/i2l and load it with Load i2L Predictor; {needs}",
    )


V1 = Family("v1", _recognise, _describe, load_v1_predictor)
