"""What we name files on Windows, by Python's own rules for its paths, and names that workflows bring from there."""

from __future__ import annotations

import errno
import fcntl
import ntpath
import os
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files.atomic import replacing, safe_join
from i2l.i2l_core.train.checkpoints import PARTS as OF_A_CHECKPOINT
from i2l.i2l_core.train.checkpoints import Checkpoints

HERE = Path("/tmp/nowhere/loras")
THERE = PureWindowsPath("C:/Users/me/ComfyUI/models/loras")


def is_reserved(part: str) -> bool:
    newer: Any = getattr(ntpath, "isreserved", None)  # from Python 3.13 on
    return newer(part) if newer else PureWindowsPath(part).is_reserved()


def on_windows(name: str) -> PureWindowsPath | None:
    """Where `safe_join` puts a name under a folder of Windows; None when it refuses the name."""
    try:
        inside = safe_join(HERE, name).relative_to(HERE)
    except I2LError:
        return None
    return THERE.joinpath(*inside.parts)


PARTS = st.one_of(
    st.text(st.sampled_from('./\\:~ aC\0é"*|?<>'), max_size=8),
    st.sampled_from(["CON", "nul", "com1", "LPT9", "aux ", "C:", "C:ink", "..", "ink.", "con.txt", "COM¹"]),
)


@given(st.lists(PARTS, min_size=1, max_size=3), st.sampled_from(["/", "\\"]))
def test_what_is_taken_is_one_plain_file_inside_the_folder_on_windows(parts: list[str], slash: str):
    path = on_windows(slash.join(parts))
    if path is None:
        return
    assert path.is_relative_to(THERE)
    assert path.drive == THERE.drive
    assert ntpath.normpath(path) == str(path)  # nothing in it goes up
    inside = path.relative_to(THERE)
    for part in inside.parts:
        assert not is_reserved(part)
        assert part.rstrip(". ") == part  # Windows would leave these out, and another name come of it
        assert not set(part) & set('<>:"|?*\\/')
    assert inside.as_posix() == (slash.join(parts).strip().removesuffix(".safetensors") + ".safetensors")


@pytest.mark.parametrize(
    "name", ["C:ink", "C:\\ink", "\\\\server\\share\\ink", "ink\\..\\..\\up", "\\ink", "ink:stream"]
)
def test_drives_shares_and_streams_are_refused(name: str):
    """Joined to a folder of Windows, each of these leaves it or is no file."""
    assert not (THERE / name).is_relative_to(THERE) or ".." in name or ":" in name
    assert on_windows(name) is None


@pytest.mark.parametrize("name", ["ink", "style/ink", "水墨/ink v1.5", "style/console"])
def test_names_are_listed_there_as_windows_lists_them(name: str):
    assert on_windows(name) == THERE / (name.replace("/", "\\") + ".safetensors")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: no folder can be opened, and no descriptor that only reads is synced."""
    opened, synced = os.open, os.fsync

    def open_file(path: Any, *args: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced(descriptor)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.usefixtures("windows")
def test_a_training_saves_its_checkpoints(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"network": {}}, keep=3, main=True)
    state = {part: {"w": torch.rand(3, 2)} for part in OF_A_CHECKPOINT}
    for step in (1, 2, 3):
        checkpoints.save(step, state)
    empty = {part: {"w": torch.zeros(3, 2)} for part in OF_A_CHECKPOINT}
    assert checkpoints.load(empty) == 3
    assert all(torch.equal(empty[part]["w"], state[part]["w"]) for part in OF_A_CHECKPOINT)
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 3


@pytest.mark.usefixtures("windows")
def test_a_file_is_replaced(tmp_path: Path):
    with replacing(tmp_path / "predictor.safetensors") as path:
        path.write_bytes(b"whole")
    assert (tmp_path / "predictor.safetensors").read_bytes() == b"whole"
