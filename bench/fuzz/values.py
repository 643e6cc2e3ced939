"""Texts and numbers that readers stumble over, and random damage to texts and bytes."""

from __future__ import annotations

import random
from typing import Any

TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "a\nb",
    "\r\n",
    "\x1b[31mred",
    "\u202egnp",
    "\u2028",
    "\ud800",
    "\udcff.png",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "../../etc/passwd",
    "..",
    ".",
    "/",
    "\\",
    "C:\\x",
    "CON",
    "nul.txt",
    "é" * 128,
    "\U0001f3a8" * 70,
    "n" * 300,
    "9" * 400,
    "1" * 16_000,
    "~",
    "$HOME",
    "%s%n",
    "{0}",
    "[" * 3000,
    '{"a":' * 3000,
    "NaN",
    "-1",
    "1e400",
    "0x10",
    "١",
    "½",
    "null",
)
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "7",
    [],
    {},
    [[]],
)


def text(rng: random.Random) -> str:
    found = rng.choice(TEXTS)
    return found + rng.choice(TEXTS) if rng.random() < 0.2 else found


def value(rng: random.Random) -> Any:
    return text(rng) if rng.random() < 0.4 else rng.choice(NUMBERS)


def damaged_text(rng: random.Random, whole: str) -> str:
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(whole) + 1)
        end = min(len(whole), start + rng.randrange(6))
        whole = (
            whole[:start]
            + rng.choice((text(rng), "", "-", ".", ":", "[", "\n", whole[start:end] * 2))
            + whole[end:]
        )
    return whole


def damaged_bytes(rng: random.Random, whole: bytes, most: int = 4) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randrange(1, most)):
        start = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[start % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[start % len(data)] = rng.choice((0, 1, 127, 128, 255))
            case 2:
                del data[start : start + rng.randrange(1, 64)]
            case 3:
                data[start : start + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            case 4:
                del data[start:]
            case _:
                data[start:start] = rng.randbytes(rng.randrange(1, 16))
    return bytes(data)


def damaged_tree(rng: random.Random, tree: Any) -> Any:
    """JSON values with one entry replaced, removed or added, at any depth."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        rest = {k: v for k, v in tree.items() if k != key}
        match rng.randrange(8):
            case 0:
                return rest
            case 1:
                return {**tree, text(rng): value(rng)}
            case _:
                return {**rest, key: damaged_tree(rng, tree[key])}
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        place = rng.randrange(len(tree))
        return [*tree[:place], damaged_tree(rng, tree[place]), *tree[place + 1 :]]
    return value(rng)
