"""Checkpoints of a run: one folder each, written atomically, independent of the number of devices.

    FOLDER/checkpoints/step-00001000/{predictor,average,optimiser}.safetensors, state.json

No random state is kept between steps (pairing.py), so a checkpoint is the weights, their average, the state of the
optimiser and the step. Sharded tensors are gathered one at a time and written by the first process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ..checks import check_entries, listed
from ..errors import I2LError
from .config import differences

FORMAT, VERSION = "i2l-training", 1
PARTS = ("predictor", "average", "optimiser")

_STATE = "state.json"
_PARTIAL = "partial-"

State = Mapping[str, Mapping[str, Tensor]]  # part -> tensors; they are read from, and written into


@dataclass(frozen=True)
class Checkpoints:
    """`fixed`: settings that must match to resume, as JSON values. `main`: whether this process writes."""

    folder: Path
    fixed: Mapping[str, Any]
    keep: int
    main: bool

    def newest(self) -> Path | None:
        return max(self.folder.glob("step-*"), default=None)

    def save(self, step: int, state: State) -> None:
        """Every process must call it. Raises I2LError when the disk refuses; earlier checkpoints stay as they are."""
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f"{_PARTIAL}{step:08d}"
        problem = self._attempt(lambda: self._begin(partial))
        for part in PARTS:
            whole = {name: _whole(tensor, self.main) for name, tensor in state[part].items()}
            kept = {name: tensor for name, tensor in whole.items() if tensor is not None}
            problem = problem or self._attempt(
                lambda part=part, kept=kept: _write(partial / f"{part}.safetensors", kept)
            )
        problem = problem or self._attempt(lambda: self._finish(partial, final, step))
        if problem is not None:
            shutil.rmtree(partial, ignore_errors=True)
            raise I2LError(
                f"cannot save the checkpoint of step {step} in {self.folder}: {problem}. Earlier checkpoints are "
                "whole; make room and start again"
            )

    def load(self, state: State) -> int:
        """Read the newest checkpoint into `state`, and return its step; 0 when there is none.

        Raises I2LError naming file and reason when it is damaged, or of another config, base model, encoder or data.
        """
        path = self.newest()
        if path is None:
            return 0
        about = self._about(path)
        different = differences(dict(self.fixed), about["fixed"])
        if different:
            raise I2LError(
                f"{path} belongs to another training: {listed(different)}. Use its config, or another [run] folder"
            )
        for part in PARTS:
            _read(path / f"{part}.safetensors", state[part])
        if self.main:
            self._tidy()
        return about["step"]

    def read_average(self) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        """(step, "network" of `fixed`, averaged weights) of the newest checkpoint. Raises I2LError without one."""
        path = self.newest()
        if path is None:
            raise I2LError(f"there is no checkpoint in {self.folder} yet")
        about = self._about(path)
        with _opened(path / "average.safetensors") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
        return about["step"], about["fixed"]["network"], weights

    def _about(self, path: Path) -> dict[str, Any]:
        try:
            text = (path / _STATE).read_text("utf-8")
            about = check_entries(_STATE, json.loads(text), ("format", "version", "step", "fixed"))
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if (about["format"], about["version"]) != (FORMAT, VERSION) or type(about["step"]) is not int:
            raise I2LError(f"{path} was written by another version of ComfyUI-i2L; resume with that version")
        return about

    def _begin(self, partial: Path) -> None:
        self._tidy()
        partial.mkdir(parents=True)

    def _finish(self, partial: Path, final: Path, step: int) -> None:
        about = {"format": FORMAT, "version": VERSION, "step": step, "fixed": self.fixed}
        with (partial / _STATE).open("w", encoding="utf-8") as file:
            json.dump(about, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        os.replace(partial, final)
        _sync(self.folder)
        self._tidy()

    def _tidy(self) -> None:
        """Remove old checkpoints, and what a run left that was killed while it wrote or removed one."""
        for left in (*self.folder.glob(f"{_PARTIAL}*"), *sorted(self.folder.glob("step-*"))[: -self.keep]):
            shutil.rmtree(left, ignore_errors=True)

    def _attempt(self, action: Callable[[], None]) -> str | None:
        """Run it in the process that writes; the reason when it fails, which every process learns."""
        problem = None
        if self.main:
            try:
                action()
            except (OSError, SafetensorError) as error:
                problem = str(error)
        return _told(problem)


def _told(problem: str | None) -> str | None:
    """What the first process says, in every process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return problem
    said = [problem]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def _whole(tensor: Tensor, keep: bool) -> Tensor | None:
    """The tensor gathered from all devices, on the CPU; None where it is not needed."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().contiguous() if keep else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    try:
        # Windows writes out nothing through a descriptor that may only read
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return  # Windows opens no folders; NTFS keeps their changes in its journal
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@torch.no_grad()
def _read(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with _opened(path) as file:
        names = set(file.keys())
        if names != tensors.keys():
            raise _damaged(
                path,
                f"it lacks {listed(sorted(tensors.keys() - names)) or 'nothing'}, "
                f"and has too much: {listed(sorted(names - tensors.keys())) or 'nothing'}",
            )
        for name, tensor in tensors.items():
            stored = file.get_tensor(name)
            if stored.shape != tensor.shape:
                raise _damaged(
                    path, f"{name} has the shape {tuple(stored.shape)}, expected {tuple(tensor.shape)}"
                )
            if isinstance(tensor, DTensor):
                # each process reads the file itself
                stored = distribute_tensor(
                    stored.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
                )
            tensor.copy_(stored)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: object) -> I2LError:
    return I2LError(
        f"the checkpoint {path} is damaged: {reason}. Remove its step-... folder to resume from the one before it"
    )
