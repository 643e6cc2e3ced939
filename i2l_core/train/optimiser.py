"""Muon for hidden matrices, AdamW for the rest: about twice the progress per step of AdamW alone at this size.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix (Newton-Schulz iteration). Written here
because torch's own runs the iteration in bfloat16 one matrix at a time, which is slow on CPUs; this one is float32
and batches matrices of equal shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic with the steepest slope at zero that still stays near one
_ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest orthogonal matrices, approximately: (N, m, n) -> (N, m, n) with singular values near one."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For parameters with two dimensions, or three where the first one stacks matrices.

    The update has the root mean square of an AdamW update, so one learning rate fits both.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[tuple(p.shape[-2:])].append(p)
            for (rows, columns), params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    gradient = cast(Tensor, p.grad)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    update = gradient.lerp(state["momentum"], group["momentum"])
                    updates.append(update.view(-1, rows, columns))
                scale = 0.2 * max(rows, columns) ** 0.5
                for p, update in zip(
                    params, orthogonalise(torch.cat(updates)).split([len(u) for u in updates]), strict=True
                ):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"] * scale)


class Pair:
    """Both optimisers as one: `step`, `zero_grad`, a common learning-rate factor, a flat dict of state tensors."""

    def __init__(
        self, matrices: Mapping[str, Tensor], others: Mapping[str, Tensor], lr: float, weight_decay: float
    ) -> None:
        self._names = [*matrices, *others]
        self._params = [*matrices.values(), *others.values()]
        self._lr = lr
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(Muon(matrices.values(), lr, weight_decay=weight_decay))
        if others:
            self._parts.append(torch.optim.AdamW(others.values(), lr, betas=(0.9, 0.98), weight_decay=0.0))

    def step(self, factor: float) -> None:
        """One update at `factor` times the base learning rate. Gradients are clipped to norm 1 and then freed."""
        torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._lr * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        tensors = {}
        for name, p in zip(self._names, self._params, strict=True):
            for part in self._parts:
                for key, value in part.state.get(p, {}).items():
                    tensors[f"{name}|{key}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        owner = {id(p): part for part in self._parts for group in part.param_groups for p in group["params"]}
        params = dict(zip(self._names, self._params, strict=True))
        for key, value in tensors.items():
            name, entry = key.rsplit("|", 1)
            owner[id(params[name])].state[params[name]][entry] = value.clone()
