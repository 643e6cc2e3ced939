"""Checks of values read from a file. Each raises I2LError saying what was expected and what was found."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import I2LError


def check_int(name: str, value: Any, largest: int) -> None:
    """Raise I2LError unless `value` is an int from 1 to `largest`. bool is refused."""
    if type(value) is not int or not 1 <= value <= largest:
        raise I2LError(f"{name} must be a whole number from 1 to {largest}, got {shown(value)}")


def check_number(name: str, value: Any, above: float, largest: float) -> None:
    """Raise I2LError unless `value` is a finite number, `above` < value <= `largest`."""
    if type(value) not in (int, float) or not above < value <= largest:  # NaN compares false
        raise I2LError(f"{name} must be a number above {above} and up to {largest}, got {shown(value)}")


def check_strength(value: float) -> None:
    """Raise I2LError unless it is finite."""
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:  # NaN compares false
        raise I2LError(f"strength must be a finite number, got {shown(value)}")


def check_entries(
    name: str, value: Any, required: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, Any]:
    """A copy of a JSON object. Raises I2LError if a required entry is missing or an entry is unknown."""
    if not isinstance(value, Mapping):
        raise I2LError(f"{name} must be a JSON object, got {type(value).__name__}")
    required = set(required)
    if missing := sorted(required - set(value)):
        raise I2LError(f"{name} lacks {listed(missing)}")
    if unknown := sorted(str(key) for key in set(value) - required - set(optional)):
        raise I2LError(f"{name} has unknown entries: {listed(unknown)}")
    return dict(value)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Up to five names and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:120] for name in names[:most]) + more


def check_text(name: str, value: str) -> None:
    """Raise I2LError for a text that no file name and no other program takes: with NUL or half a character in it."""
    if "\0" in value or any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise I2LError(f"{name} holds NUL or half a character, got {shown(value)}; write it again")


def shown(value: Any) -> str:
    """A short text for any value that a file may hold, for messages."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of more than 64 bits"  # printing it may be refused
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
