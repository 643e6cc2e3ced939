"""The error that the pack raises for bad input, in one line."""

from __future__ import annotations


class I2LError(ValueError):
    """Bad input from a file, a socket or a widget.

    The message is one line an artist understands: what was expected, what came, which file or input,
    and what to do.
    """


def first_line(error: BaseException) -> str:
    """The type and the first line of another library's error, to quote in a message of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
