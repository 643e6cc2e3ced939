"""A slice of bench.fuzz: no hostile input escapes the pack's own errors, its values, or its limits."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of its processes are Linux's")
def test_no_case_of_the_slice_fails(tmp_path):
    command = [sys.executable, "-m", "bench.fuzz", "--cases", "3000", "--seed", "7", "--keep", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "raw 0, hangs 0, wrong 0, cases 3000", run.stdout
