"""The one error the pack raises on purpose: bad input, said in one line."""

from __future__ import annotations


class I2LError(ValueError):
    """Bad input at an edge: a file, a socket, a widget.

    The message is one line an artist understands: what was expected, what came, which file or input,
    and what to do.
    """
