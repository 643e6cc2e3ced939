"""Every error message that the README and the help pages quote is one that the code raises."""

from __future__ import annotations

import ast
import errno
import os
import re
from functools import cache
from pathlib import Path

import pytest

from i2l.tools.host import ROOT

ANY = "\0"  # a value that is filled in: {...} in the code, … on the page
TABLES = {"README.md": "| what you see |", "docs/training.md": "| message |"}


def test_every_quoted_message_exists_in_the_code():
    wrong = [
        f"{page.relative_to(ROOT)}: {quote}"
        for page, quotes in quoted().items()
        for quote in quotes
        if not raised(quote)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_page_with_a_table_of_errors_is_read():
    assert len(quoted()) >= 16
    assert all(quoted().values()), [page for page, quotes in quoted().items() if not quotes]


@pytest.mark.parametrize(
    "message",
    [
        "the predictor was made for …, the model is …",
        "the LoRA does not suit this MODEL",
        "the mask is green",
        "there is no predictor",
        "it is …",
    ],
)
def test_a_message_that_no_code_raises_is_found(message: str):
    """The first was quoted by the README for months."""
    known = [
        "there is no predictor yet: put one into {}",
        "the LoRA does not fit this MODEL: {}",
        "the mask is {}x{}",
    ]
    templates = tuple(words(text.replace("{}", ANY)) for text in known)
    expected = message == "there is no predictor"
    assert any(fits(words(message), template) for template in templates) is expected


def quoted() -> dict[Path, list[str]]:
    """Pages -> the messages in the first column of their tables of errors."""
    pages = {page: rows(page, "| message |") for page in sorted((ROOT / "web" / "docs").glob("*.md"))}
    for name, head in TABLES.items():
        pages[ROOT / name] = [
            quote for row in rows(ROOT / name, head) for quote in re.findall(r"\*([^*]+)\*", row)
        ]
    return pages


def rows(page: Path, head: str) -> list[str]:
    table = page.read_text("utf-8").partition(f"\n{head}")[2].partition("\n\n")[0]
    return re.findall(r"^\| (.*?) \|", table, re.M)


def raised(quote: str) -> bool:
    """Whether a text of the code can read so. Alternatives (a / b) count one by one, remarks in brackets do not."""
    plain = re.sub(r"\(in .*?\)", "", quote)
    return all(any(fits(words(part), template) for template in texts()) for part in plain.split(" / "))


def words(text: str) -> tuple[str, ...]:
    found = re.findall(r"[\w\0.'-]+", text.replace("…", f" {ANY} "))
    return tuple(word for word in (word.strip(".") for word in found) if word)


def fits(quote: tuple[str, ...], template: tuple[str, ...]) -> bool:
    """Whether `quote` can be a part of `template`: words in order, values standing for any words.

    At least half of the words must be words of the template, so that a text which is nearly all values fits nothing.
    """

    @cache
    def same(i: int, j: int) -> int:
        """The most words that quote[i:] and template[j:] share; below 0 if they cannot match."""
        if i == len(quote):
            return 0
        if j == len(template):
            return 0 if all(word == ANY for word in quote[i:]) else -1000
        best = -1000
        if quote[i] == ANY:
            best = max(same(i + 1, j), same(i, j + 1))
        elif template[j] == ANY:
            best = max(same(i, j + 1), same(i + 1, j))
        if equal(quote[i], template[j]):
            best = max(best, same(i + 1, j + 1) + (quote[i] != ANY))
        return best

    plain = [word for word in quote if word != ANY]
    if not plain or not set(plain) & set(template):
        return False
    starts = [j for j, word in enumerate(template) if word == ANY or equal(quote[0], word) or quote[0] == ANY]
    return max((same(0, j) for j in starts), default=0) * 2 >= max(len(plain), 2)


def equal(word: str, template: str) -> bool:
    if ANY not in template or template == ANY:
        return word == template
    return re.fullmatch(re.escape(template).replace(re.escape(ANY), ".*"), word) is not None


@cache
def texts() -> tuple[tuple[str, ...], ...]:
    """Every text of the pack as words, values as ANY."""
    found = {os.strerror(errno.ENOSPC)}
    for folder in ("i2l_core", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.add("".join(_part(part) for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return tuple(words(text) for text in found)


def _part(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else ANY
