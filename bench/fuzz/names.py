"""Names that people and files give: refused, or a path inside of the folder that they are for."""

from __future__ import annotations

import os
import random
from pathlib import Path, PureWindowsPath

import torch

from i2l_core.errors import I2LError
from i2l_core.files.atomic import safe_join
from i2l_core.files.fingerprint import fingerprint
from i2l_core.inspection import inspect_path
from i2l_core.lora import LoRA, LowRank, Target
from i2l_core.lora_files.file import load, save
from i2l_core.predictors import open_predictor
from i2l_core.predictors.plain_runtime import PlainRuntime
from i2l_core.references.files import read_reference
from i2l_core.train.config import load_config
from i2l_core.train.data.folder import open_folder

from .case import Case, Wrong
from .values import damaged_text, text

_NAMES = (
    "style",
    "style/ink",
    "a/b/c",
    "Style",
    "ink.safetensors",
    "out/ink",
    "self/ink",
    "up/ink",
    "file/ink",
)
_PARTS = (
    "..",
    ".",
    "",
    " ",
    "~",
    "CON",
    "aux.txt",
    "com1",
    "LPT¹",
    "a:b",
    "a\\b",
    "x" * 255,
    "é" * 101,
    "-",
    "a.",
)
_PARTS += (
    "con .txt",
    "\u200b",
    "a\u0301",
    "NUL.safetensors",
    "*",
    "a\0",
    "\ud800",
    "\udc80",
    "a\n",
    ".safetensors",
)


def name_of_user(rng: random.Random) -> str:
    name = rng.choice(_NAMES)
    match rng.randrange(5):
        case 0:
            return name
        case 1:
            return damaged_text(rng, name)
        case 2:
            return text(rng)
        case 3:
            parts = name.split("/")
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(_PARTS))
            return "/".join(parts)
        case _:
            return rng.choice(("/", "../", "a/../../", "./", "//", "C:/", "\\\\host\\", "")) + name


def furnished(folder: Path) -> Path:
    """A folder inside of `folder` with links out of it, to itself and upwards, and with files."""
    root = folder / "root"
    (root / "style").mkdir(parents=True)
    (folder / "outside").mkdir()
    for name, target in {"out": folder / "outside", "self": root / "self", "up": root}.items():
        (root / name).symlink_to(target)
    (root / "file").write_bytes(b"x")
    (root / "ink.safetensors").write_bytes(b"x")
    (root / "out.safetensors").symlink_to(folder / "outside" / "a")
    return root


def save_name(rng: random.Random, folder: Path) -> Case:
    name = name_of_user(rng)
    root = furnished(folder)
    lora = LoRA({Target("layers.0.attention.qkv"): LowRank(torch.ones(1, 2), torch.ones(3, 1))})

    def check() -> None:
        before = _listing(folder)
        try:
            path = safe_join(root, name)
            _check_part_names(path.relative_to(root.resolve()))
            path = save(lora, path)
        except I2LError:
            if _listing(folder) != before:
                raise Wrong("it was refused, but files have changed") from None
            raise
        new = _listing(folder).keys() - before.keys()
        made = {one for one in new if not one.is_dir()}
        if {one.resolve() for one in made} != {path.resolve()} or not path.resolve().is_relative_to(
            root.resolve()
        ):
            raise Wrong(f"{name!r:.80} made {sorted(map(str, made))}")
        if load(path).layers.keys() != lora.layers.keys():
            raise Wrong("the file holds something else")

    return Case(name.encode(errors="surrogatepass"), check)


def path_name(rng: random.Random, folder: Path) -> Case:
    """Readers of whole paths: whatever the path is, there is a sentence about it."""
    name = name_of_user(rng)
    root = furnished(folder)
    readers = {
        "inspect_path": inspect_path,
        "fingerprint": fingerprint,
        "read_reference": read_reference,
        "load": load,
        "load_config": load_config,
        "open_folder": open_folder,
        "open_predictor": lambda path: open_predictor(path, PlainRuntime(torch.device("cpu"))),
    }
    said = rng.choice(list(readers))

    def check() -> None:
        readers[said](root / name)

    return Case(f"{said} {name}".encode(errors="surrogatepass"), check)


def _check_part_names(path: Path) -> None:
    for part in path.parts:
        windows = PureWindowsPath(part)
        if (
            windows.is_reserved()
            or windows.name != part
            or part != part.strip()
            or len(os.fsencode(part)) > 255
        ):
            raise Wrong(f"{part!r:.80} is no name on Windows")


def _listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything below a folder, links not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(place, name))
            found[Path(place, name)] = (
                about.st_ino,
                0 if os.path.isdir(os.path.join(place, name)) else about.st_size,
            )
    return found


MAKERS = {"save_name": save_name, "path_name": path_name}
