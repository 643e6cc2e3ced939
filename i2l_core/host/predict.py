"""Reference pictures -> the LoRA of their style, and the LoRA of as many gray pictures (the neutral one).

Deterministic: no seed. The neutral LoRA is the counterpart for guidance (arXiv 2606.13809, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ..encoders import SQUARE, EncoderConfig
from ..errors import I2LError
from ..images import Reference, gray
from ..lora import LoRA
from .memory import HostPredictor

MAX_NEUTRALS = 4  # neutral LoRAs that a predictor keeps, the newest

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class Predicted:
    lora: LoRA
    neutral: LoRA


def predict_lora(
    predictor: HostPredictor, references: Sequence[Reference], progress: Progress | None = None
) -> Predicted:
    """One LoRA from all references, on the CPU, in the dtype the predictor computes in.

    The references are encoded one by one. Between them and before each prediction the run stops, with the
    host's own exception, when the user cancels. Raises I2LError when a prediction is not finite.
    """
    count, encoder = len(references), predictor.loaded.encoder.config
    total = count + 2
    report = progress or (lambda done, of: None)

    predictor.load_encoder(max(reference.pixels.shape[:2].numel() for reference in references))
    tokens = []
    for done, reference in enumerate(references, 1):
        tokens.append(_encode(predictor, reference))
        report(done, total)
    neutral = predictor.neutrals.get(count)
    grays = [] if neutral else [gray(neutral_size(encoder))] * count
    gray_tokens = [_encode(predictor, grays[0])] * count if grays else []  # equal pictures, equal tokens

    predictor.load_predictor(sum(part.shape[1] for part in tokens))
    lora = _predict(predictor, tokens, references)
    report(count + 1, total)
    if neutral is None:
        neutral = _predict(predictor, gray_tokens, grays)
        _keep(predictor, count, neutral)
    report(total, total)
    return Predicted(lora, neutral)


def neutral_size(config: EncoderConfig) -> tuple[int, int]:
    """(height, width) of the gray picture: what the encoder sees without resizing, or nearly."""
    if config.kind == SQUARE:
        side = config.image_size or 0
    else:
        side = int((config.max_patches or 0) ** 0.5) * config.patch
    return side, side


def _encode(predictor: HostPredictor, reference: Reference) -> Tensor:
    """The tokens of one picture, (1, T, D), on the predictor's device."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    pixels = reference.pixels.to(predictor.encoder.load_device)
    return predictor.loaded.encoder.encode([pixels]).to(predictor.device, predictor.dtype)


def _predict(predictor: HostPredictor, tokens: Sequence[Tensor], references: Sequence[Reference]) -> LoRA:
    comfy.model_management.throw_exception_if_processing_interrupted()
    loaded = predictor.loaded
    prediction = loaded.predictor(torch.cat(list(tokens), dim=1))
    hashes = tuple(reference.hash for reference in references)
    lora = prediction.lora(base_model=loaded.base_model, predictor=loaded.name, references=hashes).to("cpu")
    try:
        lora.check_finite()
    except I2LError as error:
        raise I2LError(f"the predictor {loaded.name} failed on these references: {error}") from error
    return lora


def _keep(predictor: HostPredictor, count: int, neutral: LoRA) -> None:
    kept = predictor.neutrals
    while len(kept) >= MAX_NEUTRALS:
        del kept[next(iter(kept))]
    kept[count] = neutral
