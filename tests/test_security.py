"""Promises that somebody would like to break: no network, no program, no HTTP route, nothing outside of the folders.

What is imported and called anywhere is checked in test_import_rules, the permissions of templates in
test_core_template and test_server_errors, names and links of what is saved in test_core_lora_file and
test_core_windows. Here is what these leave out.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import template_folders
import torch
from PIL import Image
from safetensors.torch import save_file

from i2l.i2l_core.commands import inspect as inspect_command
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.files import atomic
from i2l.i2l_core.files.atomic import safe_join, write_new
from i2l.i2l_core.lora_files.file import load
from i2l.i2l_core.predictors import open_predictor
from i2l.i2l_core.predictors.base import Options
from i2l.i2l_core.predictors.plain_runtime import PlainRuntime
from i2l.i2l_core.predictors.template.run import PERMISSION
from i2l.i2l_core.references import references_with
from i2l.i2l_core.references.files import read_reference
from i2l.i2l_core.train.data.shards import open_shards

ROOT = Path(__file__).resolve().parent.parent
PREDICTOR = ROOT / "i2l_core" / "demo" / "weights" / "predictor.safetensors"

_WATCHED = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "urllib.",
    "ftplib.",
)
_WATCHED += ("pickle.find_class", "ctypes.dlopen", "webbrowser.", "smtplib.")
_listeners: list[list[str]] = []


def _hear(event: str, arguments: object) -> None:
    if _listeners and event.startswith(_WATCHED):
        for heard in _listeners:
            heard.append(f"{event} {arguments}"[:200])


sys.addaudithook(_hear)  # Python tells it of every socket, program and pickled class, whoever asks for them


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Fails when anything inside opens a socket, starts a program, loads a library or unpickles a class."""
    heard: list[str] = []
    _listeners.append(heard)
    try:
        yield
    finally:
        _listeners.remove(heard)
    assert not heard


@pytest.mark.parametrize(
    "harm",
    [
        lambda: socket.socket().close(),
        lambda: subprocess.run(["true"], check=True),
        lambda: os.system("true"),
        lambda: pickle.loads(pickle.dumps(Path)),
    ],
    ids=["socket", "program", "shell", "pickle"],
)
def test_the_watch_sees_harm(harm: Callable[[], object]):
    with pytest.raises(AssertionError), nothing_happens():
        harm()


class Payload:
    """Unpickled, it runs a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def everything(path: Path, folder: Path) -> list[tuple[str, Callable[[], object]]]:
    """All that reads a file or folder whose content nobody vouches for."""
    runtime = PlainRuntime(torch.device("cpu"), None, [folder])
    return [
        ("LoRA", lambda: load(path)),
        ("predictor", lambda: open_predictor(path, runtime)),
        ("predictor that may run", lambda: open_predictor(path, runtime, Options(allow_code=True))),
        ("picture", lambda: read_reference(path)),
        ("shards", lambda: open_shards(folder)),
    ]


def hostile(kind: str, folder: Path, marker: Path) -> Path:
    path = folder / "ink.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    elif kind == "torch":
        torch.save({"lora": Payload(marker)}, path)
    elif kind == "postscript":
        path = folder / "ink.png"
        path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch " + bytes(marker) + b") (w) file"
        )
    elif kind == "address":
        about = {"modelspec.thumbnail": "http://127.0.0.1:9/a.png", "ss_sd_model_name": "http://127.0.0.1:9/"}
        save_file({"a": torch.zeros(2, 2)}, path, about)
    elif kind == "program":
        path = template_folders.hostile(folder / "ink", marker)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(path, "a.png")
    return path


@pytest.mark.parametrize("kind", ["pickle", "torch", "postscript", "address", "program"])
def test_no_file_reaches_the_network_or_runs_anything(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv(PERMISSION, raising=False)
    marker = tmp_path / "executed"
    path = hostile(kind, tmp_path, marker)
    load_all = everything(path, tmp_path)
    for _, read in load_all:  # what is imported late comes with libraries of its own
        with pytest.raises(I2LError):
            read()
    for _, read in load_all:
        with pytest.raises(I2LError), nothing_happens():
            read()
    with nothing_happens():
        inspect_command.main([str(path)])
    assert not marker.exists()


def test_a_prediction_needs_no_network():
    predictor = open_predictor(PREDICTOR, PlainRuntime(torch.device("cpu")))
    predictor.predict(references_with(torch.rand(1, 8, 8, 3), 1.0))
    with nothing_happens():
        predictor = open_predictor(PREDICTOR, PlainRuntime(torch.device("cpu")))
        predictor.predict(references_with(torch.rand(1, 8, 8, 3), 1.0))


def test_the_pack_gives_the_server_no_routes():
    """Routes are added to ComfyUI's server, in its module `server`: nothing of ours names it."""
    paths = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "i2l_core").rglob("*.py")]
    assert len(paths) > 100
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [node.id] if isinstance(node, ast.Name) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            assert not {"server", "PromptServer", "aiohttp", "routes", "add_routes"} & set(names), path


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("target", ["/etc/hostname", "../secret.png", "b.png"])
def test_a_link_in_an_archive_is_no_picture(tmp_path: Path, kind: bytes, target: str):
    """Nor a device: it is left out, and its sample has no picture."""
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "a.tar", "w") as tar:
        for name, content in (("b.txt", picture()), ("a.json", b'{"style": "ink", "prompt": "a cat"}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = kind, target
        tar.addfile(link)
    with pytest.raises(I2LError, match=r"a\.tar sample .*: expected one picture"):
        open_shards(tmp_path / "set")


def test_nothing_of_an_archive_is_unpacked(tmp_path: Path):
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "a.tar", "w") as tar:
        for name, content in (("png", picture()), ("json", b'{"style": "ink", "prompt": "a cat"}')):
            member = tarfile.TarInfo(f"../../out.{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    before = sorted(tmp_path.parent.rglob("out*"))
    assert open_shards(tmp_path / "set").open(0).size == (16, 16)
    assert sorted(tmp_path.parent.rglob("out*")) == before


@pytest.mark.parametrize("name", ["x" * 200, "水" * 66, "é" * 100, "𝔘" * 50], ids=["1", "3", "2", "4 bytes"])
def test_the_longest_names_are_saved_twice(tmp_path: Path, name: str):
    """With their number and their temporary name they still are within the 255 bytes of a file system."""
    paths = [write_new(safe_join(tmp_path, f"{name}/{name}"), text) for text in (b"one", b"two")]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(path.name for path in paths)


def test_names_that_differ_in_case_only_overwrite_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On Windows and macOS ink and INK are one file: the file system's own answer counts, not a comparison of names."""
    link = os.link

    def on_windows(source: Path, path: Path) -> None:
        if any(one.name.casefold() == Path(path).name.casefold() for one in Path(path).parent.iterdir()):
            raise FileExistsError(str(path))
        link(source, path)

    monkeypatch.setattr(atomic.os, "link", on_windows)
    found = [
        write_new(safe_join(tmp_path, name), name.encode()) for name in ("ink", "INK", "Ink.safetensors")
    ]
    assert [path.name for path in found] == [
        "ink.safetensors",
        "INK_00002.safetensors",
        "Ink_00003.safetensors",
    ]
    assert [path.read_bytes() for path in found] == [b"ink", b"INK", b"Ink.safetensors"]


OUTSIDE = [
    "../secret.safetensors",
    "/etc/passwd",
    "..\\secret.safetensors",
    "a\0b",
    "n" * 300,
    "..",
    "sub/../../x",
]
LOADERS = {
    "load.LoadI2LPredictor": "predictor_name",
    "load_file.LoadLoRAFile": "lora_name",
    "template_load.LoadTemplate": "template_name",
    "infinity_load.LoadInfinity": "model_name",
    "infinity_load.LoadInfinityTextEncoder": "text_encoder_name",
    "infinity_load.LoadInfinityVAE": "vae_name",
}


@pytest.mark.parametrize("node", LOADERS)
@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_no_loader_reads_outside_of_its_folders(host: object, node: str, name: str):
    import importlib

    module, kind = node.split(".")
    loader: Any = getattr(importlib.import_module(f"i2l.nodes.{module}"), kind)
    assert isinstance(loader.validate_inputs(**{LOADERS[node]: name}), str)
    with pytest.raises(I2LError) as caught, nothing_happens():
        loader.execute(**{LOADERS[node]: name})
    assert str(caught.value).isprintable()
