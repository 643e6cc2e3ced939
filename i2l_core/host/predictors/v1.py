"""Version 1 on the host: references -> embeddings -> LoRA.

What the encoders saw in a picture is kept while the server runs, so only pictures that are new are looked at. The
predictor itself reads every weight once: they stay where they are and are brought over in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import I2LError
from ...lora import LoRA
from ...predictors.v1.network import LoadedV1, load_v1
from ...references import MIN_SIDE, Reference, gray, with_positive_weight
from ..memory import v1_memory
from .base import HostPredictor, Predicted, Progress
from .embeddings import Embeddings
from .encoder_files import EncoderFile, find_encoders
from .picture_encoders import FileEncoder, PictureEncoder, file_encoder
from .qwen_states import QwenStates


@dataclass(frozen=True, eq=False)
class V1HostPredictor(HostPredictor):
    """A predictor file of version 1, the encoders that it looked through, and the newest LoRA of gray pictures."""

    loaded: LoadedV1
    embeddings: Embeddings
    float8: bool | None = None  # keep DINOv3 in 8 bits; None: where the card is too small for it in 16
    clip: Any = None  # the host's CLIP of Qwen-Image, for predictors that read through it
    encoders: dict[str, FileEncoder] = field(default_factory=dict)  # by kind
    neutrals: dict[str, LoRA] = field(default_factory=dict)  # by what looked at the gray picture

    @property
    def name(self) -> str:
        return self.loaded.name

    def describe(self) -> str:
        config = self.loaded.config
        size = sum(parameter.nbytes for parameter in self.loaded.predictor.parameters())
        return (
            f"i2L version 1, {config.title}, for {config.base_model.title}: rank {config.rank} per picture, "
            f"{len(config.adapted_layers)} layers, {size / 1e6:.0f} MB\n"
            f"encoders: {find_encoders(config.token_dim).describe()}"
            + ("; and the CLIP of Qwen-Image" if config.residual else "")
        )

    def get_models(self) -> list[ModelPatcher]:
        return [encoder.patcher for encoder in self.encoders.values() if encoder.patcher is not None]

    def with_clip(self, clip: Any) -> V1HostPredictor:
        return replace(self, clip=clip)

    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> Predicted:
        """References with a mask are filled where it is black; the weighted mean of the pictures' LoRAs is exact."""
        used = with_positive_weight(references)
        encoders = self._picture_encoders()
        key = " ".join(encoder.id for encoder in encoders)
        blank = gray((MIN_SIDE, MIN_SIDE))  # of one colour: every size looks the same
        pictures = [reference.mask_filled() for reference in used]
        if key not in self.neutrals:
            pictures.append(blank)
        by_hash = {picture.hash: picture for picture in pictures}
        known = [self._known(encoder, by_hash) for encoder in encoders]
        report = _counter(sum(len(by_hash) - len(found) for found in known) + 2, progress)

        for encoder, found in zip(encoders, known, strict=True):
            self._look(encoder, by_hash, found, report)
        seen = [torch.stack([found[picture.hash] for picture in pictures]) for found in known]
        count = len(used)
        lora = self._predict([part[:count] for part in seen], used)
        report()
        if key not in self.neutrals:
            # the mean of any number of equal pictures is one of them
            neutral = self._predict([part[count:] for part in seen], [blank])
            self.neutrals.clear()
            self.neutrals[key] = neutral
        report()
        return Predicted(lora, self.neutrals[key])

    def _picture_encoders(self) -> list[PictureEncoder]:
        """SigLIP2, DINOv3, and for some predictors the CLIP. Raises I2LError for what is missing."""
        config = self.loaded.config
        files = find_encoders(config.token_dim).complete(config.title)
        encoders: list[PictureEncoder] = [self._file_encoder(file) for file in files.values()]
        if config.residual is not None:
            if self.clip is None:
                raise I2LError(
                    f"{config.title} also looks through the text encoder of Qwen-Image: connect Load CLIP (type "
                    "qwen_image) to the clip of Images to LoRA"
                )
            encoders.append(QwenStates(self.clip, config.residual, _dtype()))
        return encoders

    def _file_encoder(self, file: EncoderFile) -> FileEncoder:
        """The one in memory, if it is of this file as it is now."""
        encoder = file_encoder(file, self.float8)
        kept = self.encoders.get(file.config.kind)
        if kept is None or kept.id != encoder.id:
            self.encoders[file.config.kind] = kept = encoder
        return kept

    def _known(self, encoder: PictureEncoder, pictures: Mapping[str, Reference]) -> dict[str, Tensor]:
        """What it has seen of these pictures before, by their hashes."""
        found = {hash: self.embeddings.get((encoder.id, hash)) for hash in pictures}
        return {hash: seen for hash, seen in found.items() if seen is not None}

    def _look(
        self,
        encoder: PictureEncoder,
        pictures: Mapping[str, Reference],
        found: dict[str, Tensor],
        report: Callable[[], None],
    ) -> None:
        """Complete what is found of these pictures; all on the CPU."""
        if found.keys() == pictures.keys():
            return
        with encoder.ready() as look:
            for hash, picture in pictures.items():
                if hash not in found:
                    found[hash] = look(picture)
                    self.embeddings.keep((encoder.id, hash), found[hash])
                    report()

    def _predict(self, seen: Sequence[Tensor], references: Sequence[Reference]) -> LoRA:
        comfy.model_management.throw_exception_if_processing_interrupted()
        loaded, device = self.loaded, comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(v1_memory(loaded.config, len(references), _dtype()), device)
        embeddings = torch.cat(list(seen[:2]), dim=1).to(device)
        residuals = seen[2].to(device) if loaded.config.residual else None
        lora = loaded.predictor(embeddings, [reference.weight for reference in references], residuals).to(
            "cpu"
        )
        try:
            lora.check_finite()
        except I2LError as error:
            raise I2LError(f"the predictor {loaded.name} failed on these references: {error}") from error
        return replace(
            lora, predictor=loaded.name, references=tuple(reference.hash for reference in references)
        )


def load_v1_predictor(
    path: str | Path, embeddings: Embeddings, float8: bool | None = None
) -> V1HostPredictor:
    """Read a predictor file of version 1. Raises I2LError as `load_v1` does; encoders are looked for later."""
    return V1HostPredictor(load_v1(path), embeddings, float8)


def _dtype() -> torch.dtype:
    """What the encoders give and the predictor computes in."""
    bf16 = comfy.model_management.should_use_bf16(comfy.model_management.get_torch_device())
    return torch.bfloat16 if bf16 else torch.float32


def _counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Reports one more step of `total` at each call."""
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return report
