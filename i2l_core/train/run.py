"""One training run: a folder with a checkpoint that resumes exactly, a CSV of losses, a progress bar.

Nothing random is kept between steps: a stage draws everything of step n from `Run.generator(n)`, so a resumed run
continues as if it had never stopped.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .optimiser import Pair


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains."""

    steps: int  # optimiser updates
    batch: int  # samples an update
    lr: float
    seed: int
    warmup: int = 100  # steps of linear rise
    decay: float = 0.35  # last share of the steps, linear fall to zero
    weight_decay: float = 0.01
    average: float = 0.998  # of the exponential moving average of the weights that is kept
    save_every: int = 200

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.save_every) < 1 or not 0 <= self.decay <= 1 or self.lr <= 0:
            raise ValueError(
                f"a plan needs positive steps, batch, save_every, lr and a decay in 0..1: {self}"
            )

    def factor(self, step: int) -> float:
        """Learning-rate factor of a step, 0..1."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        fall = (self.steps - step) / max(self.steps * self.decay, 1)
        return min(rise, fall, 1.0)


class Run:
    """Trains `modules` by calling `loss(step)`; keeps a moving average of the weights."""

    def __init__(
        self, folder: Path, plan: Plan, modules: dict[str, nn.Module], muon: Callable[[str, Tensor], bool]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.plan = folder, plan
        self.params = {
            f"{m}.{k}": p for m, net in modules.items() for k, p in net.named_parameters() if p.requires_grad
        }
        self.average = {k: p.detach().clone() for k, p in self.params.items()}
        matrices = {k: p for k, p in self.params.items() if muon(k, p)}
        others = {k: p for k, p in self.params.items() if k not in matrices}
        self.optimiser = Pair(matrices, others, plan.lr, plan.weight_decay)
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
        started, shown, first = time.time(), 0.0, self.step
        while self.step < self.plan.steps:
            value = loss(self.step)
            value.backward()
            figure = float(value.detach())
            if not np.isfinite(figure):
                raise FloatingPointError(f"loss {figure} at step {self.step}; resume from {self._checkpoint}")
            self.optimiser.step(self.plan.factor(self.step))
            torch._foreach_lerp_(
                list(self.average.values()),
                [p.detach() for p in self.params.values()],
                1 - min(self.plan.average, (self.step + 1) / (self.step + 10)),
            )
            self.step += 1
            row = {"step": self.step, "loss": round(figure, 6), "seconds": round(time.time() - started, 1)}
            for every, measure in watch:
                if self.step % every == 0 or self.step == self.plan.steps:
                    row |= measure(self.step)
            self._log(row)
            if time.time() - shown > 5:
                shown = time.time()
                self._show(figure, (time.time() - started) / (self.step - first))
            if self.step % self.plan.save_every == 0 or self.step == self.plan.steps:
                self.save()
        sys.stderr.write("\n")

    def save(self) -> None:
        tensors = {f"model/{k}": p.detach() for k, p in self.params.items()}
        tensors |= {f"average/{k}": p for k, p in self.average.items()}
        tensors |= {f"optimiser/{k}": v for k, v in self.optimiser.state().items()}
        partial = self._checkpoint.with_suffix(".partial")
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            partial,
            {"step": str(self.step), "plan": json.dumps(asdict(self.plan))},
        )
        os.replace(partial, self._checkpoint)

    def load_average(self) -> None:
        """Put the averaged weights into the modules, for export."""
        with torch.no_grad():
            for key, p in self.params.items():
                p.copy_(self.average[key])

    def _resume(self) -> None:
        with safe_open(self._checkpoint, "pt") as file, torch.no_grad():
            keys = set(file.keys())
            missing = [k for k in self.params if f"model/{k}" not in keys]
            if missing:
                raise ValueError(
                    f"{self._checkpoint} is of another configuration: it lacks {', '.join(missing[:5])}"
                )
            for key, p in self.params.items():
                p.copy_(file.get_tensor(f"model/{key}"))
                self.average[key].copy_(file.get_tensor(f"average/{key}"))
            prefix = "optimiser/"
            self.optimiser.load_state(
                {k[len(prefix) :]: file.get_tensor(k) for k in keys if k.startswith(prefix)}
            )
            self.step = int(file.metadata()["step"])

    def _log(self, row: dict) -> None:
        path = self.folder / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "loss", "seconds", "figures"])
            figures = {k: v for k, v in row.items() if k not in ("step", "loss", "seconds")}
            writer.writerow(
                [row["step"], row["loss"], row["seconds"], json.dumps(figures) if figures else ""]
            )

    def _show(self, loss: float, pace: float) -> None:
        done = self.step / self.plan.steps
        bar = "#" * round(30 * done)
        left = pace * (self.plan.steps - self.step) / 60
        sys.stderr.write(
            f"\r[{bar:<30}] {self.step}/{self.plan.steps}  loss {loss:.4f}  {pace:.2f} s/step  {left:.0f} min left "
        )
        sys.stderr.flush()
