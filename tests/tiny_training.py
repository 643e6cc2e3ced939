"""Trainings of a few seconds: a demo world of one layer with random weights, a data set of small pictures, a config.

`start` runs one in a process of its own, as a user would from a shell. The processes are forked from a server that
has imported torch once, so each takes a fraction of a second to begin.
"""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tarfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

try:
    from i2l.i2l_core.demo import files
except ModuleNotFoundError:  # in the server, which has seen no conftest.py, and imports once what is slow
    import accelerate  # noqa: F401
    import conftest  # noqa: F401
    import torch.distributed.fsdp
    import transformers

    transformers.SiglipVisionModel  # noqa: B018 it is imported when asked for

    from i2l.i2l_core.demo import files
import tiny_world

from i2l.i2l_core.commands import train as command
from i2l.i2l_core.demo.autoencoder import PATCH, build_decoder, fit_basis
from i2l.i2l_core.demo.backbone import Backbone, BackboneConfig
from i2l.i2l_core.demo.text import TextEncoder
from i2l.i2l_core.train import session
from i2l.i2l_core.train.config import load_config
from i2l.i2l_core.train.demo_base import DemoBaseLoader

SIDE = 64  # pixels: 16 tokens
SUBJECTS = ("star", "heart", "moon", "fish")
STYLES = 8

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def write_world(folder: Path) -> Path:
    """Backbone, VAE and predictor with random weights; the predictor's encoder is what trainings look through."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        backbone = Backbone(BackboneConfig(n_layers=1))
        tiny_world._randomise(backbone)
        files.save_backbone(folder, backbone, TextEncoder())
        files.save_vae(folder, fit_basis(torch.rand(8, 4 * PATCH, 4 * PATCH, 3)), build_decoder())
        tiny_world.save_random_predictor(folder / files.PREDICTOR)
    return folder


def rows() -> list[dict[str, str]]:
    """Every style with every subject."""
    return [
        {"style": f"style-{s}", "image": f"images/{s}-{n}.png", "prompt": f"one {subject} on the left"}
        for s in range(STYLES)
        for n, subject in enumerate(SUBJECTS)
    ]


def picture(style: int, content: int) -> Image.Image:
    """A colour of the style, a square of the content."""
    rng = np.random.default_rng([style, content])
    pixels = np.full((SIDE, SIDE, 3), rng.integers(0, 255, 3), np.uint8)
    pixels[content * 8 : content * 8 + 24, 8:40] = np.random.default_rng(style).integers(0, 255, 3)
    return Image.fromarray(pixels)


def write_folder(folder: Path) -> Path:
    """The data set as a .jsonl file and pictures; the .jsonl file."""
    (folder / "images").mkdir(parents=True)
    for row in rows():
        style, content = map(int, Path(row["image"]).stem.split("-"))
        picture(style, content).save(folder / row["image"])
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def write_shards(folder: Path, shards: int = 3) -> Path:
    """The same data set as .tar shards, the samples dealt to them in turn."""
    folder.mkdir(parents=True)
    tars = [tarfile.open(folder / f"{n:03d}.tar", "w") for n in range(shards)]
    for number, row in enumerate(rows()):
        style, content = map(int, Path(row["image"]).stem.split("-"))
        image = io.BytesIO()
        picture(style, content).save(image, "PNG")
        about = json.dumps({"style": row["style"], "prompt": row["prompt"]}).encode()
        for extension, content in (("png", image.getvalue()), ("json", about)):
            member = tarfile.TarInfo(f"{number:06d}.{extension}")
            member.size = len(content)
            tars[number % shards].addfile(member, io.BytesIO(content))
    for tar in tars:
        tar.close()
    return folder


def tables(world: Path, data: Path, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """A config as tables; a change is table__entry=value."""
    config: dict[str, dict[str, Any]] = {
        "base": {"kind": "tiny-world", "weights": str(world), "checkpointing": False},
        "encoder": {"source": str(world / files.PREDICTOR)},
        "predictor": {"hidden": 32, "blocks": 2, "heads": 2, "code": 8, "rank": 2, "mlp_ratio": 2.0},
        "data": {"kind": "folder", "path": str(data), "height": SIDE, "width": SIDE, "unseen": 0.25},
        "pairing": {"targets": 2, "most_references": 3, "gray": 0.2},
        "plan": {"steps": 6, "batch": 4, "lr": 0.01, "seed": 3, "warmup": 2, "decay": 0.0, "save_every": 2}
        | {"average": 0.9},
        "run": {"folder": str(folder), "micro_batch": 4, "device": "cpu", "measure_every": 3},
    }
    for name, value in changes.items():
        table, entry = name.split("__")
        config.setdefault(table, {})[entry] = value
    return config


def write_config(path: Path, config: dict[str, dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def train_here(config: Path) -> Path:
    """In this process; the predictor file."""
    AcceleratorState._reset_state(reset_partial_state=True)  # its precision is the process's
    loaded = load_config(config)
    path = session.train(loaded, DemoBaseLoader(), command._accelerator(loaded.run))
    assert path is not None
    return path


def start(config: Path, before: Callable[[], None] = lambda: None, number: int = 0) -> Any:
    """A process of its own, which calls `before` first; its standard error goes beside the config, by its number."""
    process = _context().Process(target=_main, args=(str(config), before, number))
    process.start()
    return process


def as_one_of(number: int, of: int, port: int) -> None:
    """The process is the `number`-th of a training, as torchrun says it."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(of)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(of), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def on_a_full_disk(size: int, killed: bool) -> None:
    """No file can be larger than `size` bytes: its write fails, or the process ends in the middle of it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def killed_at(operation: int, folder: str) -> None:
    """The process ends before so many operations on the files of `folder` are done."""
    left = operation

    def watch(event: str, args: tuple) -> None:
        nonlocal left
        if event in _CHANGES or (event == "open" and str(args[0]).startswith(folder)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def said(config: Path, number: int = 0) -> str:
    return config.with_suffix(f".{number}.txt").read_text()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before])])
    try:  # the server finds its modules by this, Python 3.11 does not tell it of sys.path
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _main(config: str, before: Callable[[], None], number: int) -> None:
    sys.stderr = Path(config).with_suffix(f".{number}.txt").open("w", buffering=1)
    torch.set_num_threads(1)
    before()
    sys.exit(command.main([config]))
