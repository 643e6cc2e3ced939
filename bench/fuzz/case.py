"""One hostile input, and the verdict on what a reader did with it."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from i2l_core.errors import I2LError

LONGEST_MESSAGE = 2100


class Wrong(Exception):
    """The input was accepted, but not with its own values."""


@dataclass(frozen=True)
class Case:
    """`content`: the input, kept when it fails. `check` reads it: it raises I2LError when the reader refuses, and Wrong
    when what was read is not what the input says."""

    content: bytes
    check: Callable[[], None]


Maker = Callable[[random.Random, Path], Case]
"""(random numbers, an empty folder) -> a case whose files are in that folder."""


def judge(case: Case) -> tuple[str, str]:
    """("accepted" | "refused" | "raw" | "wrong", what is wrong)."""
    try:
        case.check()
    except Wrong as error:
        return "wrong", str(error)
    except I2LError as error:
        problem = problem_of_message(str(error))
        return ("raw", problem) if problem else ("refused", "")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "raw",
            f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:200]!r}",
        )
    return "accepted", ""


def problem_of_message(message: str) -> str:
    if not message or len(message) > LONGEST_MESSAGE:
        return f"the message has {len(message)} characters"
    if len(message.splitlines()) != 1 or any(
        ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for char in message
    ):
        return "the message is not one line of text"
    return ""
