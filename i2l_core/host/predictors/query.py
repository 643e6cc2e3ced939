"""The query family on the host: references -> tokens -> LoRA, under ComfyUI's memory management.

Encoder and predictor are ordinary model patchers, as checkpoints are. Loading them frees only what is missing,
so a checkpoint stays where it is when there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import I2LError
from ...lora import LoRA
from ...predictors.query.attention_bias import attention_bias
from ...predictors.query.file import LoadedPredictor, load_predictor
from ...references import Reference, gray, with_positive_weight
from ..memory import as_patcher, encoder_memory, predictor_memory
from .base import HostPredictor, Predicted, Progress

MAX_NEUTRALS = 4  # neutral LoRAs that a predictor keeps, the newest

Key = tuple[tuple[float, str], ...]  # weight and mask of each reference: all that a neutral LoRA depends on


@dataclass(frozen=True, eq=False)
class QueryHostPredictor(HostPredictor):
    """A predictor file of the query family. `neutrals`: what was asked for -> the LoRA of so many gray ones."""

    loaded: LoadedPredictor
    encoder: ModelPatcher
    patcher: ModelPatcher  # of the predictor; the host looks for this name
    dtype: torch.dtype  # what both compute in
    neutrals: dict[Key, LoRA] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.loaded.name

    def describe(self) -> str:
        config, encoder = self.loaded.config, self.loaded.encoder.config
        size = sum(model.model_size() for model in self.get_models())
        return (
            f"i2L predictor for {self.loaded.base_model}: rank {config.rank}, {len(config.layers)} layers, "
            f"its own encoder ({encoder.kind}, width {encoder.token_dim}), {size / 1e6:.0f} MB"
        )

    def get_models(self) -> list[ModelPatcher]:
        return [self.encoder, self.patcher]

    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> Predicted:
        """The references are encoded one by one; between them and before each prediction the user may cancel."""
        used = with_positive_weight(references)
        total = len(used) + 2
        report = progress or (lambda done, of: None)

        self._load_encoder(max(reference.pixels.shape[:2].numel() for reference in used))
        tokens = []
        for done, reference in enumerate(used, 1):
            tokens.append(self._encode(reference))
            report(done, total)
        key = tuple(sorted((reference.weight, reference.mask_hash) for reference in used))
        neutral = self.neutrals.get(key)
        blank = gray(self.loaded.encoder.config.full_size)
        blank_tokens = self._encode(blank) if neutral is None else None

        self._load_predictor(sum(part.shape[1] for part in tokens))
        lora = self._predict(tokens, used)
        report(total - 1, total)
        if blank_tokens is not None:
            # equal pictures, equal tokens; they count as the references do
            blanks = [replace(blank, weight=one.weight, mask=one.mask) for one in used]
            neutral = self._predict([blank_tokens] * len(used), blanks)
            self._keep(key, neutral)
        report(total, total)
        assert neutral is not None
        return Predicted(lora, neutral)

    def _load_encoder(self, pixels: int) -> None:
        """`pixels`: of the largest picture. A plain transformers module cannot run with half of its weights
        elsewhere: it is loaded whole."""
        needed = encoder_memory(self.loaded.encoder.config, pixels, self.dtype)
        comfy.model_management.load_models_gpu([self.encoder], memory_required=needed, force_full_load=True)

    def _load_predictor(self, tokens: int) -> None:
        """As much of it as fits. `tokens`: of all pictures together."""
        needed = predictor_memory(self.loaded.config, tokens, self.dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def _encode(self, reference: Reference) -> Tensor:
        """The tokens of one picture, (1, T, D), on the predictor's device."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        pixels = reference.pixels.to(self.encoder.load_device)
        return self.loaded.encoder.encode([pixels]).to(self.patcher.load_device, self.dtype)

    def _predict(self, tokens: Sequence[Tensor], references: Sequence[Reference]) -> LoRA:
        comfy.model_management.throw_exception_if_processing_interrupted()
        loaded = self.loaded
        bias = attention_bias(references, [loaded.encoder.grid(*one.size) for one in references])
        if bias is not None:
            bias = bias.to(self.patcher.load_device)
        prediction = loaded.predictor(torch.cat(list(tokens), dim=1), bias)
        hashes = tuple(reference.hash for reference in references)
        lora = prediction.lora(base_model=loaded.base_model, predictor=loaded.name, references=hashes)
        lora = lora.to("cpu")
        try:
            lora.check_finite()
        except I2LError as error:
            raise I2LError(f"the predictor {loaded.name} failed on these references: {error}") from error
        return lora

    def _keep(self, key: Key, neutral: LoRA) -> None:
        while len(self.neutrals) >= MAX_NEUTRALS:
            del self.neutrals[next(iter(self.neutrals))]
        self.neutrals[key] = neutral


def load_query_predictor(path: str | Path) -> QueryHostPredictor:
    """Read a predictor file and hand it to the host. Raises I2LError as `load_predictor` does."""
    device = comfy.model_management.get_torch_device()
    bf16 = comfy.model_management.should_use_bf16(device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    loaded = load_predictor(path, ops=comfy.ops.manual_cast)
    loaded.predictor.requires_grad_(False)
    # the predictor casts layer by layer, so a 16 bit file may stay as small as it is; the encoder cannot
    if loaded.predictor.queries.dtype == torch.float32:
        loaded.predictor.to(dtype)
    loaded.encoder.to(dtype)
    return QueryHostPredictor(loaded, as_patcher(loaded.encoder), as_patcher(loaded.predictor), dtype)
