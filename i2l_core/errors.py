"""The one error that reaches the artist: what was expected, what came, in which file or input, what to do."""

from __future__ import annotations


class I2LError(ValueError):
    """Bad input at an edge of the pack (a file, a socket, a widget). The message is one line."""
