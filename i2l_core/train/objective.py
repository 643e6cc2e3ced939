"""The loss of the paper (eq. 6): references -> LoRA -> velocity of the frozen base model, against the true one.

    L = E || v_{theta + G(R)}(x_t, t, c) - u_t ||^2

The whole loss is one module, so that wrappers for several devices see a single forward. Only the parameters of the
predictor are registered; base model and encoder are frozen and stay whole on each device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders import VisionEncoder
from ..predictors.query.network import QueryNetwork
from .base import Base, Layers
from .data.batches import Batch

References = Sequence[Sequence[Tensor]]


class Objective(nn.Module):
    def __init__(self, predictor: QueryNetwork, encoder: VisionEncoder, base: Base, batch: int) -> None:
        super().__init__()
        self.predictor = predictor
        self._frozen = encoder, base  # a tuple hides modules from nn.Module
        self._batch = batch  # pictures encoded at once

    def forward(
        self, batch: Batch | None = None, bare: bool = False, references: References | None = None
    ) -> Tensor | Layers:
        """The mean loss of a batch, a float32 number; `bare`: of the base model without a LoRA.

        With `references` instead of a batch: the LoRAs that they predict.
        """
        if batch is None:
            assert references is not None
            return self._predict(references)
        layers = None if bare else self._predict(batch.references)
        _, base = self._frozen
        with _as_it_is(batch.x.device):  # the base model runs as the host runs it
            velocity = base.velocity(batch.x, batch.sigma, batch.texts, layers)
            return (velocity.float() - batch.target).square().mean()

    def _predict(self, references: References) -> Layers:
        tokens, bias = reference_tokens(self._frozen[0], references, self._batch)
        return self.predictor(tokens, bias).layers()


@torch.no_grad()
def reference_tokens(
    encoder: VisionEncoder, references: References, batch: int
) -> tuple[Tensor, Tensor | None]:
    """Tokens (P, T, D) of each pair's pictures, and the bias (P, T) that leaves filling out, where there is any.

    `batch`: pictures encoded at once.
    """
    with _as_it_is(references[0][0].device):
        each = iter(encoder.encode_each([picture for row in references for picture in row], batch))
    rows = [torch.cat([next(each) for _ in row]).float() for row in references]
    longest = max(len(row) for row in rows)
    tokens = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    bias = tokens.new_full((len(rows), longest), float("-inf"))
    for i, row in enumerate(rows):
        tokens[i, : len(row)], bias[i, : len(row)] = row, 0
    return tokens, bias if any(len(row) < longest for row in rows) else None


def _as_it_is(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context without mixed precision. The meta device, on which costs are counted, does not support it."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
