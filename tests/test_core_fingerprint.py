"""What is cached by file must not outlive the file: another one under its name, size and time is another file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files.fingerprint import content_fingerprint, fingerprint
from i2l.i2l_core.inspection import inspect_path
from i2l.i2l_core.predictors import read_source


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(1, 1_700_000_000_000_000_000))
    return path


@pytest.mark.parametrize("way", ["written in place", "copied with its times", "renamed over it"])
@pytest.mark.parametrize("folder", [False, True])
def test_another_file_of_equal_size_and_time_is_seen(tmp_path: Path, way: str, folder: bool):
    path = tmp_path / "models" / "a.safetensors"
    path.parent.mkdir()
    write(path, b"a" * 100_000)
    whole = path.parent if folder else path
    before = fingerprint(whole)
    assert fingerprint(whole) == before
    other = write(tmp_path / "other", b"b" * 100_000)
    if way == "written in place":
        write(path, b"b" * 100_000)
    elif way == "copied with its times":
        shutil.copy2(other, path)
    else:
        os.replace(other, path)
    assert path.stat().st_mtime_ns == 1_700_000_000_000_000_000
    assert fingerprint(whole) != before


def test_content_counts_where_the_file_system_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on Windows, where no time tells of a change and numbers of files may be zero."""
    monkeypatch.setattr("i2l.i2l_core.files.fingerprint.stamp", lambda about: "")
    path = write(tmp_path / "a", b"a" * 1000)
    before = fingerprint(path)
    write(path, b"b" * 1000)
    assert fingerprint(path) != before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    for function in (fingerprint, content_fingerprint):
        with pytest.raises(I2LError, match=r"cannot read .*gone\.safetensors"):
            function(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "\ud800"])
def test_a_name_that_no_file_has_is_refused_in_one_line(tmp_path: Path, name: str):
    for read in (fingerprint, content_fingerprint, inspect_path, read_source):
        with pytest.raises(I2LError) as caught:
            read(tmp_path / name)
        assert str(caught.value).isprintable()
