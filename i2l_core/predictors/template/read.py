"""Diffusion Templates of DiffSynth-Studio: folders with a program, model.py, that predicts a LoRA from pictures.

At its top level model.py says

    TEMPLATE_MODEL          the class of the network
    TEMPLATE_MODEL_PATH     its weights: a safetensors file of the folder, or a list of them; None or absent: none
    TEMPLATE_MODEL_CONFIG   what its constructor is called with, where there are weights

and the network has `process_inputs(pipe, image=[picture, ...], **kwargs)` -> dict and `forward(pipe, **that)` -> dict
with "lora" in it. https://github.com/modelscope/DiffSynth-Studio, docs/en/Diffusion_Templates

This module only parses the program; nothing in the folder is run or imported. run.py runs it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checks import listed
from ...errors import I2LError, first_line
from ..published import where_to_get

PROGRAM = "model.py"

_MAX_PROGRAM_BYTES = 1 << 18
_MOST_NAMES = 1000  # packages, and files of weights: each is looked for


@dataclass(frozen=True, eq=False)
class Template:
    """The parsed program of a folder.

    `weights`: names in TEMPLATE_MODEL_PATH, or None where only running the program would tell. `imports`: packages
    that it names and Python does not bring.
    """

    folder: Path  # with all links followed
    source: bytes  # of model.py
    network: str  # the name of the class, where it is written
    weights: tuple[str, ...] | None
    imports: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages among `imports` that are not installed."""
        return tuple(name for name in self.imports if not _installed(name))

    def describe(self) -> str:
        """What it is, for people, in one line."""
        if self.weights is None:
            size = "weights that only its program can name"
        elif not self.weights:
            size = "no weights: it starts from random ones"
        else:
            paths = [self.folder / name for name in self.weights]
            size = f"{sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) / 1e6:.0f} MB"
        lacking = f", not installed: {listed(self.missing)}" if self.missing else ""
        return f"Diffusion Template {self.network} with its own encoder, {size}{lacking}"


def read_template(folder: Path, roots: Sequence[Path]) -> Template:
    """Parse the model.py of a folder, without running or importing it.

    `roots`: the folders that templates may be in. Raises I2LError if a link leads out of them, and if model.py is
    missing or not the program of a template.
    """
    name, real = folder.name, folder.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise I2LError(
            f"{name} is a link to {real}, outside of the folders for predictors; "
            "copy it there, or add its place to extra_model_paths.yaml under i2l"
        )
    source = _read_program(real)
    try:
        tree = ast.parse(source, PROGRAM)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise I2LError(
            f"{name}: its {PROGRAM} is not valid Python ({first_line(error)}); download it again"
        ) from error
    said = dict(_assignments(tree))
    if "TEMPLATE_MODEL" not in said:
        raise I2LError(
            f"{name}: its {PROGRAM} does not set TEMPLATE_MODEL, so it is not a Diffusion Template of version 2"
        )
    weights = _literal_weights(said.get("TEMPLATE_MODEL_PATH"))
    imports = tuple(sorted(_imports(tree) - set(sys.stdlib_module_names)))
    if max(len(weights or ()), len(imports)) > _MOST_NAMES:
        raise I2LError(
            f"{name}: its {PROGRAM} names {len(imports)} packages and {len(weights or ())} files of weights, expected "
            f"at most {_MOST_NAMES} of each; download it again"
        )
    return Template(real, source, _class_name(said["TEMPLATE_MODEL"])[:80], weights, imports)


def weight_path(template: Template, name: str) -> Path:
    """A file that TEMPLATE_MODEL_PATH names. Raises I2LError when it is missing, outside of the folder, or no
    safetensors."""
    try:
        path = (template.folder / name).resolve()
        path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a link to itself, NUL
        raise I2LError(
            f"{template.name}: its weights {name[:120]} cannot be read ({first_line(error)}); download it again"
        ) from error
    if not path.is_relative_to(template.folder):
        raise I2LError(
            f"{template.name}: its weights {name[:120]} are outside of the folder; copy them there"
        )
    if path.suffix != ".safetensors":
        raise I2LError(
            f"{template.name}: its weights {name[:120]} are not a .safetensors file; other formats are not read"
        )
    if not path.is_file():
        raise I2LError(
            f"{template.name}: its weights {name[:120]} are missing; {where_to_get(template.name)}"
        )
    return path


def weight_names(value: Any) -> list[str] | None:
    """TEMPLATE_MODEL_PATH as a list of names, or None when it is of another kind."""
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    names = [os.fspath(name) for name in values if isinstance(name, str | os.PathLike)]
    return names if len(names) == len(values) and all(name.isprintable() for name in names) else None


def _read_program(folder: Path) -> bytes:
    path = folder / PROGRAM
    if not path.is_file():
        raise I2LError(
            f"{folder.name} is a folder without {PROGRAM}: expected a Diffusion Template, {PROGRAM} and its weights; "
            f"{where_to_get(folder.name)}"
        )
    if not path.resolve().is_relative_to(folder):
        raise I2LError(
            f"{folder.name}: its {PROGRAM} is a link out of the folder; copy the file itself there"
        )
    if path.stat().st_size > _MAX_PROGRAM_BYTES:
        raise I2LError(
            f"{folder.name}: its {PROGRAM} is larger than 256 KB, so it is not the program of a template"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise I2LError(f"{folder.name}: its {PROGRAM} cannot be read ({error.strerror})") from error


def _assignments(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Every name that is bound anywhere, and to what, where that is an expression."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        elif isinstance(node, ast.ClassDef):
            yield node.name, None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name, None) for alias in node.names)


def _class_name(value: ast.expr | None) -> str:
    if isinstance(value, ast.Name):
        return value.id
    return value.attr if isinstance(value, ast.Attribute) else "TEMPLATE_MODEL"


def _imports(tree: ast.AST) -> set[str]:
    packages = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.split(".")[0])
    return packages


def _literal_weights(value: ast.expr | None) -> tuple[str, ...] | None:
    """The names in TEMPLATE_MODEL_PATH; none where it is None or not set."""
    if value is None:
        return ()
    try:
        said = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    names = weight_names(said)
    return None if names is None else tuple(names)


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None
