"""Muon for hidden matrices, AdamW for the rest: about twice the progress per step of AdamW alone at this size.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix (Newton-Schulz iteration). Written here
because torch's own runs the iteration in bfloat16 one matrix at a time, which is slow on CPUs; this one is float32
and batches matrices of equal shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
    """For parameters with two dimensions, three where the first one stacks matrices, and convolutions, each as the
    matrix of its filters.

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
                    shapes[_matrix(p)].append(p)
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


def _matrix(p: Tensor) -> tuple[int, ...]:
    return (p.shape[0], p[0].numel()) if p.ndim == 4 else tuple(p.shape[-2:])


class Optimiser:
    """One optimiser: Muon for the named matrices, AdamW for the rest.

    Its state is there from the beginning, all zeros, so that a checkpoint can be read into it. With Muon only its
    matrices decay, without it everything does.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        matrices: Collection[str],
        lr: float,
        weight_decay: float,
        beta: float = 0.98,
        clip: float = 1.0,
    ) -> None:
        """`beta`: of AdamW's second moment that is kept; `clip`: largest norm of the gradient."""
        self._params, self._lr, self._clip = params, lr, clip
        self._parts: list[torch.optim.Optimizer] = []
        others = [p for name, p in params.items() if name not in matrices]
        if others:
            decay = 0.0 if matrices else weight_decay
            adam = torch.optim.AdamW(others, lr, betas=(0.9, beta), weight_decay=decay)
            for p in others:
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                adam.state[p] = {"step": torch.zeros(()), **moments}
            self._parts.append(adam)
        if matrices:
            muon = Muon([params[name] for name in matrices], lr, weight_decay=weight_decay)
            for name in matrices:
                muon.state[params[name]] = {"momentum": torch.zeros_like(params[name])}
            self._parts.append(muon)

    def tensors(self) -> dict[str, Tensor]:
        """The state, as "name of the parameter|name of the entry" -> tensor, to read and to write into."""
        return {
            f"{name}|{entry}": value
            for name, p in self._params.items()
            for part in self._parts
            for entry, value in part.state.get(p, {}).items()
        }

    def clip(self) -> float:
        """Clip the gradients together; their norm before."""
        norm = nn.utils.clip_grad_norm_(list(self._params.values()), self._clip)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, factor: float) -> float:
        """One update at `factor` times the base learning rate; the rate. Gradients are freed."""
        rate = self._lr * factor
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        return rate
