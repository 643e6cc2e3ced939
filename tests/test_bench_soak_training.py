"""The night of kills itself, with a stand-in for training: it kills, goes on, and sees what is different or left."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Writes a log and, at its end, a checkpoint; started again it goes on. A kind of fault comes with being killed.
TRAINING = """
import os, sys, time
from pathlib import Path
if sys.argv[4] != "0":
    time.sleep(1.2)
    sys.exit()
folder, steps, fault = Path(sys.argv[1]) / "run", int(sys.argv[2]), sys.argv[3]
log, last = folder / "log.csv", folder / "checkpoints" / f"step-{steps:08d}"
last.mkdir(parents=True, exist_ok=True)
killed = log.exists()
rows = log.read_text().splitlines() if killed else ["step,loss,seconds"]
for step in range(len(rows), steps + 1):
    time.sleep(0.05)
    rows.append(f"{step},0.5,{time.time()}")
    new = Path(sys.argv[1]).with_suffix(".new")
    new.write_text("\\n".join(rows))
    os.replace(new, log)
(last / "predictor.safetensors").write_text("other" if killed and fault == "different" else "weights")
(folder / "predictor.safetensors").write_text("weights")
if killed and fault == "left":
    (folder / ".half").write_text("")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "different", "left"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_night_sees_what_kills_do(
    fault: str, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(ROOT))
    soak: Any = importlib.import_module("bench.soak_training")
    monkeypatch.setattr(soak, "_AT_START", 0.0)

    class Night(soak.Night):
        def _start(self, folder: Path) -> list[subprocess.Popen[bytes]]:
            folder.mkdir(exist_ok=True)
            command = [sys.executable, "-S", "-c", TRAINING, str(folder), "20", fault]
            return [subprocess.Popen([*command, str(rank)]) for rank in range(processes)]

    monkeypatch.setattr(soak, "_write_world", lambda folder: folder)
    found = Night(tmp_path, processes, 20, 1, False).run(2)
    assert found["kills"] == 2
    assert found["runs"] >= 1
    assert found["hung"] == 0
    assert (found["different"] > 0) == (fault == "different")
    assert (found["left"] > 0) == (fault == "left")
