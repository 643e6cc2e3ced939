"""The training plan of a network: steps, batch size and learning rate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The training plan of one stage."""

    steps: int  # optimiser updates
    batch: int  # samples an update
    lr: float
    seed: int
    warmup: int = 100  # steps of linear rise
    decay: float = 0.35  # fraction of the steps, the last ones, in which the rate falls linearly to zero
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
