"""The error that the pack raises for bad input, in one line."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator

# Categories of Unicode that are not shown as they are: control and format characters (line ends, escape sequences of
# terminals, right-to-left overrides), lone surrogates, private and unassigned ones, separators of lines and paragraphs
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# errors that say nothing about the data: ComfyUI frees memory and tries again, or was asked to stop
_PASSED_ON = frozenset({"OutOfMemoryError", "InterruptProcessingException"})
_MOST, _END = 2000, 500  # characters of a message; of its end, where the cure is


class I2LError(ValueError):
    """Bad input from a file, a socket or a widget.

    The message is one line an artist understands: what was expected, what came, which file or input,
    and what to do. Names that it quotes come from files: it is escaped and cut here, and nowhere else.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text without line ends, control characters and lone surrogates, which are escaped, and cut in the middle
    when it is long."""
    if len(text) > _MOST:
        text = f"{text[: _MOST - _END]} ... {text[-_END:]}"
    return "".join(_escaped(char) for char in text)


def first_line(error: BaseException) -> str:
    """The type and the first line of another library's error, to quote in a message of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def reading(name: str, problem: str, cure: str) -> Iterator[None]:
    """A context in which foreign data is read: a file, a text, a value on a socket.

    Whatever other libraries and Python raise there (damaged files raise anything) becomes one I2LError with `name`,
    `problem`, the reason and `cure`. An I2LError passes as it is, and so do a full GPU and a cancelled prompt.
    """
    try:
        yield
    except I2LError:
        raise
    except Exception as error:
        if type(error).__name__ in _PASSED_ON:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise I2LError(f"{name}: {problem} ({reason}); {cure}") from error


def _escaped(char: str) -> str:
    if char.isascii() and char.isprintable():
        return char
    hidden = unicodedata.category(char) in _HIDDEN
    return char.encode("unicode_escape").decode("ascii") if hidden else char
