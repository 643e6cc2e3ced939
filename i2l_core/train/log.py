"""The log of a training: log.csv, a progress bar, and optionally TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import I2LError

COLUMNS = ("step", "loss", "seconds", "figures")

_SHOW_EVERY = 5  # seconds


class TrainingLog:
    """The log of a run's folder. Rows after `step` are dropped, because a resumed run writes them again."""

    def __init__(self, folder: Path, step: int, steps: int, tensorboard: bool = False) -> None:
        self._path = folder / "log.csv"
        self._steps, self._first, self._started, self._shown = steps, step, time.time(), 0.0
        self._board = _board(folder, step) if tensorboard else None
        try:
            self._truncate(step)
        except OSError as error:
            raise I2LError(f"cannot write {self._path}: {error}") from error

    def row(self, step: int, loss: float, figures: Mapping[str, float]) -> None:
        """`step`: how many are done; `seconds` in the file count from the last start. Raises I2LError."""
        seconds = time.time() - self._started
        values = [step, round(loss, 6), round(seconds, 1), json.dumps(figures) if figures else ""]
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(values)
        except OSError as error:
            raise I2LError(f"cannot write {self._path}: {error}; make room and start again") from error
        if self._board is not None:
            for name, value in {"loss": loss, **figures}.items():
                self._board.add_scalar(name, value, step)
        if time.time() - self._shown > _SHOW_EVERY or step == self._steps:
            self._shown = time.time()
            self._show(step, loss, seconds / (step - self._first))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        sys.stderr.write("\n")

    def _truncate(self, step: int) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        if step and self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdigit()]
            writer.writerows(row for row in rows if int(row[0]) <= step)
        partial = self._path.with_suffix(".partial")
        partial.write_text(text.getvalue(), "utf-8")
        os.replace(partial, self._path)

    def _show(self, step: int, loss: float, pace: float) -> None:
        bar = "#" * round(30 * step / self._steps)
        left = pace * (self._steps - step) / 60
        sys.stderr.write(
            f"\r[{bar:<30}] {step}/{self._steps}  loss {loss:.4f}  {pace:.2f} s/step  {left:.0f} min left "
        )
        sys.stderr.flush()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise I2LError(
            "[run] tensorboard = true, but TensorBoard is not installed: pip install tensorboard, or set it to false; "
            "log.csv is written in any case"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
