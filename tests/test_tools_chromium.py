from __future__ import annotations

from pathlib import Path

import pytest

from i2l.tools import chromium


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _bare(monkeypatch, tmp_path):
    monkeypatch.delenv(chromium.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_the_one_that_is_named_wins(monkeypatch, tmp_path):
    program(tmp_path / "bin", "chromium")
    named = program(tmp_path / "else", "my-chrome")
    monkeypatch.setenv(chromium.VARIABLE, str(named))
    assert chromium.find_chromium() == named


def test_one_on_the_path_is_found(tmp_path):
    google = program(tmp_path / "bin", "google-chrome")
    assert chromium.find_chromium() == google
    debian = program(tmp_path / "bin", "chromium")
    assert chromium.find_chromium() == debian


def test_a_wrong_name_is_not_replaced_by_another_browser(monkeypatch, tmp_path):
    program(tmp_path / "bin", "chromium")
    monkeypatch.setenv(chromium.VARIABLE, str(tmp_path / "gone"))
    assert chromium.find_chromium() is None
    assert chromium.install_chromium() is None


def test_without_browser_and_apt_there_is_none():
    assert chromium.install_chromium() is None


def test_apt_installs_it_and_a_failure_leaves_none(tmp_path, monkeypatch):
    """A stand-in for apt-get, which writes down what it was asked for."""
    log = tmp_path / "log"
    apt = program(tmp_path / "bin", "apt-get")
    apt.write_text(f'#!/bin/sh\necho "$DEBIAN_FRONTEND $@" >> {log}\n')
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert chromium.install_chromium() is None
    asked = log.read_text().splitlines()
    assert asked[0] == "noninteractive -qq update"
    assert asked[1].startswith("noninteractive -qq install -y --no-install-recommends chromium ")

    (tmp_path / "template").write_text("#!/bin/sh\n")
    (tmp_path / "template").chmod(0o755)
    apt.write_text(f"#!/bin/sh\n/bin/cp -p {tmp_path}/template {tmp_path}/bin/chromium\n")
    assert chromium.install_chromium() == tmp_path / "bin" / "chromium"
