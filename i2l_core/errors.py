"""The one error the pack raises on purpose: bad input, said in one line."""

from __future__ import annotations


class I2LError(ValueError):
    """Bad input at an edge: a file, a socket, a widget.

    The message is one line an artist understands: what was expected, what came, which file or input,
    and what to do.
    """


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, for a message of ours: its kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
