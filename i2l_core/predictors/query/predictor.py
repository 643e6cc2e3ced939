"""Predictors of the query family: encode references to tokens and predict a LoRA from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base_models import title_of
from ...errors import I2LError
from ...lora import LoRA
from ...references import Reference, gray, with_positive_weight
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
from ..memory import encoder_memory, predictor_memory
from .attention_bias import attention_bias
from .file import FORMAT, METADATA_KEY, LoadedPredictor, check_header, load_predictor


@dataclass(frozen=True, eq=False)
class QueryPredictor(Predictor):
    """A predictor file of the query family. `encoder`, `network`: the runtime's handles on both."""

    loaded: LoadedPredictor
    runtime: Runtime
    dtype: torch.dtype  # dtype of the computation
    encoder: Any
    network: Any
    # by weight and mask of each reference: all that a neutral LoRA depends on
    neutrals: NeutralCache = field(default_factory=NeutralCache)

    @property
    def name(self) -> str:
        return self.loaded.name

    def describe(self) -> str:
        config, encoder = self.loaded.config, self.loaded.encoder.config
        networks = (self.loaded.encoder, self.loaded.predictor)
        size = sum(part.nbytes for network in networks for part in network.parameters())
        return (
            f"i2L predictor for {self.loaded.base_model}: rank {config.rank}, {len(config.layers)} layers, "
            f"its own encoder ({encoder.kind}, width {encoder.token_dim}), {size / 1e6:.0f} MB"
        )

    def get_models(self) -> list[Any]:
        return [self.encoder, self.network]

    def predict(self, references: Sequence[Reference], progress: Progress | None = None) -> StyleAndNeutral:
        """References are encoded one by one; between them and before each prediction the user may cancel.

        What a mask hides is filled with the mean colour of the rest *and* its tokens are weighted down: the encoder
        looks around a mask, so that weights alone let the hidden style through.
        """
        references = with_positive_weight(references)
        total = len(references) + 2
        report = progress or (lambda done, of: None)

        # a plain transformers module cannot run with half of its weights elsewhere: it is loaded whole
        pixels = max(math.prod(reference.size) for reference in references)
        needed = encoder_memory(self.loaded.encoder.config, pixels, self.dtype)
        self.runtime.load(self.encoder, needed, whole=True)
        tokens = []
        for done, reference in enumerate(references, 1):
            tokens.append(self._encode(reference.mask_filled()))
            report(done, total)
        key = tuple(sorted((reference.weight, reference.mask_hash) for reference in references))
        neutral = self.neutrals.get(key)
        blank = gray(self.loaded.encoder.config.full_size)
        blank_tokens = self._encode(blank) if neutral is None else None

        needed = predictor_memory(self.loaded.config, sum(part.shape[1] for part in tokens), self.dtype)
        self.runtime.load(self.network, needed)
        lora = self._predict(tokens, references)
        report(total - 1, total)
        if blank_tokens is not None:
            # equal pictures, equal tokens; they count as the references do
            blanks = [replace(blank, weight=one.weight, mask=one.full_mask) for one in references]
            neutral = self.neutrals.keep(key, self._predict([blank_tokens] * len(references), blanks))
        report(total, total)
        assert neutral is not None
        return StyleAndNeutral(lora, neutral)

    def _encode(self, reference: Reference) -> Tensor:
        """The tokens of one picture, (1, T, D), on the device."""
        self.runtime.check_cancelled()
        device = self.runtime.device
        return self.loaded.encoder.encode([reference.pixels.to(device)]).to(device, self.dtype)

    def _predict(self, tokens: Sequence[Tensor], references: Sequence[Reference]) -> LoRA:
        self.runtime.check_cancelled()
        loaded = self.loaded
        bias = attention_bias(references, [loaded.encoder.grid(*one.size) for one in references])
        if bias is not None:
            bias = bias.to(self.runtime.device)
        prediction = loaded.predictor(torch.cat(list(tokens), dim=1), bias)
        hashes = tuple(reference.hash for reference in references)
        lora = prediction.lora(base_model=loaded.base_model, predictor=loaded.name, references=hashes)
        return checked_prediction(lora, loaded.name)


def load_query_predictor(
    path: str | Path, runtime: Runtime, options: Options | None = None
) -> QueryPredictor:
    """Read a predictor file. Raises I2LError as `load_predictor` does."""
    return hold(load_predictor(path, operations=runtime.operations), runtime)


def hold(loaded: LoadedPredictor, runtime: Runtime) -> QueryPredictor:
    """Hand the networks of a predictor that was read to a runtime."""
    dtype = runtime.dtype(torch.float32 if runtime.device.type == "cpu" else torch.bfloat16)
    loaded.predictor.requires_grad_(False)
    # a runtime that casts layer by layer may keep a 16 bit file as small as it is; the encoder cannot
    if not runtime.casts or loaded.predictor.queries.dtype == torch.float32:
        loaded.predictor.to(dtype)
    loaded.encoder.to(dtype)
    return QueryPredictor(
        loaded, runtime, dtype, runtime.hold(loaded.encoder), runtime.hold(loaded.predictor)
    )


def _recognise(source: Source) -> bool:
    return source.header is not None and FORMAT in source.header.metadata.get(METADATA_KEY, "")


def _describe(source: Source) -> tuple[str, str]:
    try:
        config, encoder, meta = check_header(source.path)
    except I2LError as error:
        reason = str(error).removeprefix(f"{source.path.name}: ")
        return f"a predictor of the query family that cannot be used: {reason}", "get it again"
    return (
        f"an i2L predictor of the query family for {title_of(meta['base_model']['id'])}: rank {config.rank}, "
        f"{len(config.layers)} layers, with its own encoder ({encoder.kind}, width {encoder.token_dim})",
        "put it into models/i2l and load it with Load i2L Predictor",
    )


QUERY = Family("query", _recognise, _describe, load_query_predictor)
