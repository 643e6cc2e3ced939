"""The exponential moving average of the weights, used for measurements, sheets and export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """`tensors`: one per parameter, with its shape and sharding."""

    def __init__(self, params: Mapping[str, nn.Parameter], keep: float) -> None:
        self._params, self._keep = params, keep
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step`; in the first steps less of the past is kept."""
        torch._foreach_lerp_(
            [_local(average) for average in self.tensors.values()],
            [_local(p.detach()) for p in self._params.values()],
            1 - min(self._keep, (step + 1) / (step + 10)),
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; a second call undoes it."""
        for name, p in self._params.items():
            own, average = _local(p.detach()), _local(self.tensors[name])
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def _local(tensor: Tensor) -> Tensor:
    """This device's part of a tensor that is spread over devices."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
