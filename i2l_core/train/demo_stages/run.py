"""A training run of a stage: its folder holds a log and a checkpoint from which it resumes exactly.

No random state is kept between steps: a stage draws all random numbers of step n from `StageRun.generator(n)`, so a
resumed run is identical to an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..ema import Ema
from ..log import TrainingLog
from ..optimiser import Optimiser
from ..plan import Plan


class StageRun:
    """Trains `modules` by calling `loss(step)`; keeps a moving average of the weights."""

    def __init__(
        self, folder: Path, plan: Plan, modules: dict[str, nn.Module], muon: Callable[[str, Tensor], bool]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.plan = folder, plan
        params = {
            f"{m}.{k}": p for m, net in modules.items() for k, p in net.named_parameters() if p.requires_grad
        }
        matrices = [name for name, p in params.items() if muon(name, p)]
        self._average = Ema(params, plan.average)
        self._optimiser = Optimiser(params, matrices, plan.lr, plan.weight_decay)
        self._state = {
            "model": params,
            "average": self._average.tensors,
            "optimiser": self._optimiser.tensors(),
        }
        self.step = 0
        if self._checkpoint.exists():
            self._resume()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def generator(self, step: int) -> tuple[np.random.Generator, torch.Generator]:
        """Fresh random sources that depend on the seed and the step only."""
        seeds = np.random.SeedSequence([self.plan.seed, step]).generate_state(2)
        return np.random.default_rng(int(seeds[0])), torch.Generator().manual_seed(int(seeds[1]))

    def train(
        self, loss: Callable[[int], Tensor], watch: Iterable[tuple[int, Callable[[int], dict]]] = ()
    ) -> None:
        """Run to the last step. `watch`: (every n steps, function -> figures for the log).

        Raises:
            FloatingPointError: a loss is not finite; the checkpoint of the last good step stays.
        """
        with contextlib.closing(TrainingLog(self.folder, self.step, self.plan.steps)) as log:
            while self.step < self.plan.steps:
                value = loss(self.step)
                value.backward()
                figure = float(value.detach())
                if not np.isfinite(figure):
                    raise FloatingPointError(
                        f"loss {figure} at step {self.step}; resume from {self._checkpoint}"
                    )
                self._optimiser.clip()
                self._optimiser.step(self.plan.factor(self.step))
                self._average.update(self.step)
                self.step += 1
                figures = {}
                for every, measure in watch:
                    if self.step % every == 0 or self.step == self.plan.steps:
                        figures |= measure(self.step)
                log.row(self.step, figure, figures)
                if self.step % self.plan.save_every == 0 or self.step == self.plan.steps:
                    self.save()

    def save(self) -> None:
        tensors = {
            f"{part}/{k}": v.detach().contiguous() for part, of in self._state.items() for k, v in of.items()
        }
        partial = self._checkpoint.with_suffix(".partial")
        save_file(tensors, partial, {"step": str(self.step), "plan": json.dumps(asdict(self.plan))})
        os.replace(partial, self._checkpoint)

    def load_average(self) -> None:
        """Put the averaged weights into the modules, for export."""
        self._average.swap()

    def _resume(self) -> None:
        with safe_open(self._checkpoint, "pt") as file, torch.no_grad():
            keys = set(file.keys())
            missing = [k for part, of in self._state.items() for k in of if f"{part}/{k}" not in keys]
            if missing:
                raise ValueError(
                    f"{self._checkpoint} is of another configuration: it lacks {', '.join(missing[:5])}"
                )
            for part, of in self._state.items():
                for key, tensor in of.items():
                    tensor.copy_(file.get_tensor(f"{part}/{key}"))
            self.step = int(file.metadata()["step"])
