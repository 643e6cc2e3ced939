"""What killed processes leave behind goes, what living ones write stays: with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from i2l.i2l_core.files import temporary
from i2l.i2l_core.files.atomic import replacing, write_new
from i2l.i2l_core.files.temporary import hold_temporary, remove_abandoned
from i2l.tools.host import ROOT

WRITER = """
    import sys, time
    from pathlib import Path
    from i2l_core.files.temporary import hold_temporary
    with hold_temporary(Path(sys.argv[1])) as path:
        path.write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path):
    """A process that is in the middle of writing into the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_the_file_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path, writer):
    write_new(tmp_path / "a.safetensors", b"whole")
    with replacing(tmp_path / "b") as path:
        path.write_bytes(b"whole")
    assert len(left(tmp_path)) == 1
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert len(left(tmp_path)) == 1  # nobody could
    write_new(tmp_path / "a.safetensors", b"whole")
    assert left(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "a_00002.safetensors", "b"]


def test_our_own_file_stays_while_we_write(tmp_path: Path):
    with hold_temporary(tmp_path) as path:
        path.write_bytes(b"half")
        remove_abandoned(tmp_path)
        assert path.read_bytes() == b"half"
    assert left(tmp_path) == []


def test_files_of_others_stay(tmp_path: Path):
    for name in ("i2l-a.tmp", ".i2l-a.txt", ".other.tmp", "model.safetensors"):
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / ".i2l-folder.tmp").mkdir()
    (tmp_path / ".i2l-link.tmp").symlink_to(tmp_path / "model.safetensors")
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    assert (tmp_path / "model.safetensors").read_bytes() == b"theirs"


@pytest.mark.parametrize("no_locks", ["windows", "network drive"])
def test_without_locks_only_what_is_a_day_old_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_locks: str
):
    if no_locks == "windows":
        monkeypatch.setattr(temporary, "fcntl", None)
    else:

        def refuse(descriptor: int, how: int) -> None:
            raise OSError("not supported")

        monkeypatch.setattr(temporary.fcntl, "flock", refuse)
    new, old = tmp_path / ".i2l-new.tmp", tmp_path / ".i2l-old.tmp"
    for path in (new, old):
        path.write_bytes(b"half")
    before = time.time() - 2 * 24 * 3600
    os.utime(old, (before, before))
    with replacing(tmp_path / "whole") as path:
        path.write_bytes(b"whole")
    assert left(tmp_path) == [new.name]
    assert (tmp_path / "whole").read_bytes() == b"whole"


def test_a_file_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    taken, lock = [], temporary.fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if not taken:
            taken.extend(left(tmp_path))
            (tmp_path / taken[0]).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(temporary.fcntl, "flock", late)
    assert write_new(tmp_path / "a.safetensors", b"whole").read_bytes() == b"whole"
    assert taken


def test_what_cannot_be_looked_at_is_left(tmp_path: Path):
    remove_abandoned(tmp_path / "gone")
