"""The optimiser of a run: AdamW, or Muon for the matrices inside blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..optimiser import Muon
from ..run import Plan
from .config import OptimiserTable


class Optimisation:
    """Its state is there from the beginning, all zeros, so that a checkpoint can be read into it."""

    def __init__(self, params: Mapping[str, nn.Parameter], table: OptimiserTable, plan: Plan) -> None:
        self._params = params
        self._table, self._plan = table, plan
        matrices = {
            k: p for k, p in params.items() if table.kind == "muon" and p.ndim == 2 and ".blocks." in f".{k}"
        }
        others = [p for k, p in params.items() if k not in matrices]
        decay = 0.0 if matrices else plan.weight_decay
        adam = torch.optim.AdamW(others, plan.lr, betas=(0.9, table.beta), weight_decay=decay)
        self._parts: list[torch.optim.Optimizer] = [adam]
        for p in others:
            adam.state[p] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        if matrices:
            muon = Muon(matrices.values(), plan.lr, weight_decay=plan.weight_decay)
            for p in matrices.values():
                muon.state[p] = {"momentum": torch.zeros_like(p)}
            self._parts.append(muon)

    def tensors(self) -> dict[str, Tensor]:
        """The state, as "name of the parameter|name of the entry" -> tensor."""
        return {
            f"{name}|{entry}": value
            for name, p in self._params.items()
            for part in self._parts
            for entry, value in part.state.get(p, {}).items()
        }

    def clip(self) -> float:
        """Clip the gradients together; their norm before."""
        norm = nn.utils.clip_grad_norm_(list(self._params.values()), self._table.clip)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, step: int) -> float:
        """One update with the learning rate of that step, which is returned. Gradients are freed."""
        rate = self._plan.lr * self._plan.factor(step)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        return rate


class Average:
    """The exponential moving average of the weights: what is measured, drawn with, and exported."""

    def __init__(self, params: Mapping[str, nn.Parameter], keep: float) -> None:
        self._params, self._keep = params, keep
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step; in the first steps less of the past is kept."""
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
