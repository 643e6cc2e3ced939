"""Read TOML or JSON config files strictly into frozen dataclasses.

Every entry must match a field and its type, so a misspelt name is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..checks import check_text, listed, shown
from ..errors import I2LError, reading

T = TypeVar("T")


def read_table(path: Path) -> dict[str, Any]:
    """Read a .toml or .json file as a dict. Raises I2LError naming the file."""
    with reading(
        f"cannot read the config {path}", "expected a text in UTF-8", "check its name and save it again"
    ):
        text = path.read_text("utf-8")
    if path.suffix not in (".toml", ".json"):
        raise I2LError(f"{path.name}: expected a .toml or .json config")
    try:
        table = _toml(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:  # both formats' errors are ValueErrors
        raise I2LError(f"{path.name} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(table, dict):
        raise I2LError(f"{path.name}: expected a table, got {type(table).__name__}")
    return table


def build(cls: type[T], table: Any, where: str = "") -> T:
    """An instance of the dataclass `cls` from a table; nested dataclasses from nested tables.

    `where`: name of the table, for messages. Raises I2LError for an unknown, missing or mistyped entry, and for
    what the dataclass itself refuses.
    """
    inside = f"[{where}] " if where else ""
    if not isinstance(table, Mapping):
        raise I2LError(f"[{where}] must be a table, got {shown(table)}")
    hints, known = typing.get_type_hints(cls), {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, table.keys() - known.keys())):
        raise I2LError(f"{inside}has unknown entries: {listed(unknown)}. Known: {', '.join(known)}")
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - table.keys()):
        raise I2LError(f"{inside}lacks {listed(missing)}")
    values = {
        name: _value(hints[name], value, f"{where}.{name}" if where else name)
        for name, value in table.items()
    }
    try:
        return cls(**values)
    except ValueError as error:  # an I2LError is one
        raise I2LError(f"{inside}{error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as its type; whole numbers pass for fractions, lists for tuples."""
    if is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise I2LError(f"{where} must be a list, got {shown(value)}")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if type(value) is int and value.bit_length() > 63:
        raise I2LError(f"{where} must be a number of at most 64 bits, got one of {value.bit_length()}")
    if type(value) is float and not math.isfinite(value):
        raise I2LError(f"{where} must be a finite number, got {value}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise I2LError(f"{where} must be {names[hint]}, got {shown(value)}")
    if isinstance(value, str):
        check_text(where, value)
    return value


def _toml(text: str) -> dict[str, Any]:
    for reader in ("tomllib", "tomli"):  # Python has the first from 3.11 on
        with contextlib.suppress(ImportError):
            return importlib.import_module(reader).loads(text)
    raise I2LError(
        "this Python is older than 3.11 and has no TOML reader: pip install tomli, or write the config as .json "
        "with the same names"
    )
