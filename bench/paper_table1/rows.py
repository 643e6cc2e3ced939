"""What is measured: rows of prompts, styles, and one folder of pictures for each method (docs/paper_table1.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...i2l_core.checks import check_entries, listed, shown
from ...i2l_core.errors import I2LError
from ...i2l_core.references.files import SUFFIXES


@dataclass(frozen=True, slots=True)
class Style:
    """`description` and `references` are empty where the file has none."""

    name: str
    description: str
    references: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the prompts: every method made one picture of it."""

    picture: str  # path inside a method's folder, without the suffix
    prompt: str
    style: Style


@dataclass(frozen=True)
class Material:
    """`pictures[method][i]` is what the method made of `samples[i]`."""

    samples: Sequence[Sample]
    pictures: Mapping[str, Sequence[Path]]


def read_material(pictures: Path, prompts: Path, styles: Path) -> Material:
    """Names only, no picture is opened. Raises I2LError for whatever does not fit together."""
    samples = read_prompts(prompts, read_styles(styles))
    return Material(samples, {name: _made(samples, folder) for name, folder in methods(pictures).items()})


def read_styles(path: Path) -> dict[str, Style]:
    """Rows {"style", "description", "references": [...]}; paths are relative to the file."""
    found: dict[str, Style] = {}
    for where, row in _rows(path, ("style",), ("description", "references")):
        name, description = _text(row, "style", where), _text(row, "description", where, "")
        references = row.get("references", [])
        if not isinstance(references, list) or not all(isinstance(r, str) and r for r in references):
            raise I2LError(f"{where}: references must be a list of picture files, got {shown(references)}")
        if name in found:
            raise I2LError(f"{where}: there is a style {name} already; put all its references into one row")
        paths = tuple(path.parent / r for r in references)
        if missing := [str(p) for p in paths if not p.is_file()]:
            raise I2LError(f"{where}: {len(missing)} references are not there: {listed(missing)}")
        found[name] = Style(name, description, paths)
    return found


def read_prompts(path: Path, styles: Mapping[str, Style]) -> list[Sample]:
    """Rows {"picture", "prompt", "style"}."""
    found: dict[str, Sample] = {}
    for where, row in _rows(path, ("picture", "prompt", "style"), ()):
        name, prompt, style = (_text(row, entry, where) for entry in ("picture", "prompt", "style"))
        name = _stem(Path(name))
        if name in found:
            raise I2LError(f"{where}: there is a picture {name} already; give each row its own")
        if style not in styles:
            raise I2LError(f"{where}: the file of styles has no style {shown(style)}; add a row for it")
        found[name] = Sample(name, prompt, styles[style])
    return list(found.values())


def methods(folder: Path) -> dict[str, Path]:
    """Every folder in `folder` is a method; a folder of nothing but pictures is the only one."""
    if not folder.is_dir():
        raise I2LError(f"{folder}: expected a folder of pictures, or of one folder for each method")
    inside = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    folders, beside = [p for p in inside if p.is_dir()], [p.name for p in inside if _is_picture(p)]
    if folders and beside:
        raise I2LError(
            f"{folder} has pictures beside folders ({listed(beside)}), so it is not clear what a method is; "
            "move them into the folder of their method"
        )
    return {p.name: p for p in folders} or {folder.resolve().name: folder}


def _made(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """The method's picture for each sample, and no picture more."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or not _is_picture(path):
            continue
        if (other := found.setdefault(_stem(name), path)) != path:
            raise I2LError(f"{folder}: {other.name} and {path.name} differ only in their suffix; remove one")
    wanted = [sample.picture for sample in samples]
    if missing := [name for name in wanted if name not in found]:
        raise I2LError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} pictures that the prompts name: "
            f"{listed(missing)}. Make them, or remove their rows"
        )
    if extra := sorted(found.keys() - set(wanted)):
        raise I2LError(
            f"{folder} has {len(extra)} pictures that no prompt names: {listed(extra)}. "
            "Add their rows, or remove them"
        )
    return [found[name] for name in wanted]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _stem(path: Path) -> str:
    """Methods may save in different formats, so the suffix of a picture is no part of its name."""
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()


def _rows(
    path: Path, required: Iterable[str], optional: Iterable[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is, for messages; the JSON object) of each line that is not empty."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines() would split inside of texts, at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise I2LError(f"cannot read {path}: {error}") from error
    if not any(line.strip() for line in lines):
        raise I2LError(f"{path} has no rows")
    for number, line in enumerate(lines, 1):
        where = f"{path.name} line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise I2LError(f"{where} is not a JSON object: {error}") from error
            yield where, check_entries(where, row, required, optional)


def _text(row: Mapping[str, Any], entry: str, where: str, default: str | None = None) -> str:
    value = row.get(entry, default)
    if not isinstance(value, str) or (not value.strip() and default is None):
        raise I2LError(f"{where}: {entry} must be a text, got {shown(value)}")
    return value
