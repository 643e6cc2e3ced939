"""A long night of training: killed at random moments, started again, and equal to a run that nothing stopped.

    python -m bench.soak_training --json [--kills 50] [--processes 1] [--steps 12] [--seed 0]

`python -m i2l_core train` on one layer of the demo world with a small predictor. A quarter of the kills (SIGKILL) falls
into the start of the program, the others between the first step and the last; of two processes it takes one or both.
A run that comes to its end is compared with the whole one: every byte of its last checkpoint and of its predictor, and
its log without the times. `kills`: how many hit a living run, `runs`: how many came to their end, `different`: how many
of these were not equal, `left`: files that did not belong there, `hung`: processes that did not end when their other
half was killed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from i2l_core.demo.backbone import Backbone, BackboneConfig
from i2l_core.demo.files import PREDICTOR, VAE, WEIGHTS, save_backbone
from i2l_core.demo.text import TextEncoder

from ._measure import machine

ROOT = Path(__file__).resolve().parent.parent
_SIDE = 64  # pixels
_STYLES, _SUBJECTS = 8, ("star", "heart", "moon", "fish")
_AT_START = 0.25  # share of the kills
_PATIENCE = 90  # seconds in which a process whose other half was killed must end
_SAVE_EVERY = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="i2l-soak-") as base:
        night = Night(Path(base), options.processes, options.steps, options.seed, not options.json)
        result = night.run(options.kills)
    print(json.dumps({**result, "processes": options.processes, "machine": machine(torch.device("cpu"))}))


class Night:
    def __init__(self, base: Path, processes: int, steps: int, seed: int, talk: bool) -> None:
        self._base, self._processes, self._steps, self._talk = base, processes, steps, talk
        self._random = random.Random(seed)
        self._data, self._world = _write_data(base / "data"), _write_world(base / "world")

    def run(self, kills: int) -> dict[str, Any]:
        whole = self._base / "whole"
        begin = time.monotonic()
        started = self._start(whole)
        first = self._seconds_to_step(whole, started, begin)
        _finished(started, whole)
        seconds = time.monotonic() - begin
        expected, names = _result(whole, self._steps), _names(whole)
        done: dict[str, int] = dict.fromkeys(("kills", "runs", "different", "left", "hung"), 0)
        while done["kills"] < kills:
            folder = self._base / f"run-{done['runs']}"
            started = self._start(folder)
            if self._kill(started, folder, first, seconds, done):
                done["kills"] += 1
                self._say(done)
                continue
            _finished(started, folder)
            self._count(folder, expected, names, done)
        # what was killed last comes to its end too
        folder = self._base / f"run-{done['runs']}"
        _finished(self._start(folder), folder)
        self._count(folder, expected, names, done)
        return {**done, "seconds_whole": round(seconds, 1), "seconds_to_first_step": round(first, 1)}

    def _start(self, folder: Path) -> list[subprocess.Popen[bytes]]:
        folder.mkdir(exist_ok=True)
        config = folder / "config.json"
        config.write_text(json.dumps(self._config(folder)))
        port = _free_port()
        started = []
        for rank in range(self._processes):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums depend on the number of threads
            if self._processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                environment |= {"WORLD_SIZE": str(self._processes), "LOCAL_WORLD_SIZE": str(self._processes)}
                environment |= {"MASTER_PORT": str(port)}
            with (folder / f"said-{rank}.txt").open("ab") as said:
                command = [sys.executable, "-m", "i2l_core", "train", str(config)]
                started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said))
        return started

    def _config(self, folder: Path) -> dict[str, Any]:
        return {
            "base": {"kind": "tiny-world", "weights": str(self._world), "checkpointing": False},
            "encoder": {"source": str(WEIGHTS / PREDICTOR)},
            "predictor": {"hidden": 32, "blocks": 2, "heads": 2, "code": 8, "rank": 2, "mlp_ratio": 2.0},
            "data": {
                "kind": "folder",
                "path": str(self._data),
                "height": _SIDE,
                "width": _SIDE,
                "unseen": 0.25,
            },
            "pairing": {"targets": 1, "most_references": 2, "gray": 0.2},
            "plan": {"steps": self._steps, "batch": 2, "lr": 0.01, "seed": 3, "warmup": 2, "decay": 0.0}
            | {"save_every": _SAVE_EVERY, "average": 0.9},
            "run": {
                "folder": str(folder / "run"),
                "micro_batch": 1,
                "device": "cpu",
                "measure_every": 4,
                "keep": 1,
            },
        }

    def _seconds_to_step(self, folder: Path, started: list[subprocess.Popen[bytes]], begin: float) -> float:
        """When the first step of a run was done."""
        while len(_rows(folder)) == 0 and all(one.poll() is None for one in started):
            time.sleep(0.05)
        return time.monotonic() - begin

    def _kill(
        self,
        started: list[subprocess.Popen[bytes]],
        folder: Path,
        first: float,
        seconds: float,
        done: dict[str, int],
    ) -> bool:
        """At a random moment; False if the run had come to its end by then."""
        if self._random.random() < _AT_START:
            moment = self._random.uniform(0, first)
        else:
            moment = self._random.uniform(first, seconds)
        end = time.monotonic() + moment
        while time.monotonic() < end:
            if all(one.poll() is not None for one in started):
                return False
            time.sleep(0.01)
        victims = self._random.sample(started, self._random.randint(1, len(started)))
        if all(one.poll() is not None for one in started):
            return False
        for one in victims:
            one.kill()
        for one in started:
            try:
                one.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                done["hung"] += 1
                one.kill()
                one.wait()
        return any(one.returncode == -signal.SIGKILL for one in started)

    def _count(self, folder: Path, expected: dict[str, Any], names: set[str], done: dict[str, int]) -> None:
        done["runs"] += 1
        done["different"] += _result(folder, self._steps) != expected
        done["left"] += len(_names(folder) - names)
        self._say(done)

    def _say(self, done: dict[str, int]) -> None:
        if self._talk:
            print(done, file=sys.stderr, flush=True)


def _finished(started: list[subprocess.Popen[bytes]], folder: Path) -> None:
    codes = [one.wait() for one in started]
    if any(codes):
        said = "\n".join(
            path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("said-*.txt"))
        )
        raise SystemExit(f"a run that nobody killed ended with {codes}:\n{said}")


def _result(folder: Path, steps: int) -> dict[str, Any]:
    """All that a run has to give, but for the time that it took."""
    last = folder / "run" / "checkpoints" / f"step-{steps:08d}"
    files = [*sorted(last.glob("*.safetensors")), folder / "run" / "predictor.safetensors"]
    log = [{key: value for key, value in row.items() if key != "seconds"} for row in _rows(folder)]
    return {"log": log, **{str(path.relative_to(folder)): path.read_bytes() for path in files}}


def _rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "run" / "log.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _write_data(folder: Path) -> Path:
    """Small pictures: a colour of the style, a square of the content."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for style in range(_STYLES):
        for number, subject in enumerate(_SUBJECTS):
            random_numbers = np.random.default_rng([style, number])
            pixels = np.full((_SIDE, _SIDE, 3), random_numbers.integers(0, 255, 3), np.uint8)
            pixels[number * 8 : number * 8 + 24, 8:40] = np.random.default_rng(style).integers(0, 255, 3)
            name = f"images/{style}-{number}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append({"style": f"style-{style}", "image": name, "prompt": f"one {subject} on the left"})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write_world(folder: Path) -> Path:
    """One layer of random weights: most of a run is then reading, writing and starting, where kills can do harm."""
    folder.mkdir()
    torch.manual_seed(7)
    backbone = Backbone(BackboneConfig(n_layers=1))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_backbone(folder, backbone, TextEncoder())
    shutil.copy(WEIGHTS / VAE, folder / VAE)
    return folder


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    main()
