"""Texts that people write: curves, strengths, training configs in both formats, rows of data sets."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from i2l_core.schedule import Curve, Schedule
from i2l_core.train.config import TrainConfig, load_config
from i2l_core.train.data.folder import open_folder

from .case import Case, Wrong
from .values import NUMBERS, damaged_text, damaged_tree, text

_CURVES = ("0: 1, 0.5: 0.2, 1: 0", "fade out", "0:1", "0: 0\n1: 1", ".2: -3; .2: +10.")
_CONFIG: dict[str, Any] = {
    "base": {"kind": "tiny-world"},
    "encoder": {"source": "x.safetensors", "batch": 4},
    "predictor": {"hidden": 32, "blocks": 1, "heads": 2, "code": 8, "rank": 2, "layers": ["*"], "alpha": 1.0},
    "data": {"kind": "generator", "height": 64, "unseen": 0.02},
    "plan": {"steps": 10, "batch": 4},
    "pairing": {"single": 0.25, "targets": 1},
    "optimiser": {"clip": 1.0},
    "run": {"folder": "out", "keep": 2},
}
_ROW = {"style": "ink", "image": "a.png", "prompt": "a cat", "content": "cat"}


def curve(rng: random.Random, folder: Path) -> Case:
    said = rng.choice(_CURVES)
    said = damaged_text(rng, said) if rng.random() < 0.8 else text(rng)

    def check() -> None:
        found = Curve.parse(said)
        if found is None or ":" not in said:
            return
        points = [
            tuple(map(float, one.split(":")))
            for one in said.replace(";", ",").replace("\n", ",").split(",")
            if one.strip()
        ]
        if list(found.points) != points:
            raise Wrong(f"{found.points}, the text says {points}")

    return Case(said.encode(errors="surrogatepass"), check)


def schedule(rng: random.Random, folder: Path) -> Case:
    start, end = (rng.choice([n for n in NUMBERS if type(n) in (int, float)]) for _ in range(2))

    def check() -> None:
        found = Schedule(start, end)
        if not 0 <= found.start <= found.end <= 1:
            raise Wrong(f"{found}")

    return Case(repr((start, end)).encode(), check)


def config(rng: random.Random, folder: Path) -> Case:
    tree = _CONFIG
    for _ in range(rng.randrange(3)):
        tree = damaged_tree(rng, tree)
    suffix = rng.choice((".json", ".toml"))
    written = json.dumps(tree) if suffix == ".json" else _toml(tree)
    if rng.random() < 0.3:
        written = damaged_text(rng, written)
    content = written.encode(errors="surrogatepass")
    path = folder / f"c{suffix}"
    path.write_bytes(content)

    def check() -> None:
        found = load_config(path)
        _check_finite(found)
        if suffix == ".json":
            _check_contains(dataclasses.asdict(found), json.loads(content))

    return Case(content, check)


def rows(rng: random.Random, folder: Path) -> Case:
    lines = []
    for _ in range(rng.randrange(1, 4)):
        line = json.dumps(damaged_tree(rng, _ROW) if rng.random() < 0.5 else _ROW)
        lines.append(damaged_text(rng, line) if rng.random() < 0.2 else line)
    content = "\n".join(lines).encode(errors="surrogatepass")
    path = folder / "data.jsonl"
    path.write_bytes(content)

    def check() -> None:
        data = open_folder(path)
        for index, picture in enumerate(data.pictures):
            picture.style.encode()
            data.version(index)

    return Case(content, check)


def _toml(tree: Any) -> str:
    """Enough of TOML; what it cannot say stands there as JSON, which is an error in it, or the same."""
    if not isinstance(tree, dict):
        return json.dumps(tree)
    lines = []
    for name, table in tree.items():
        lines.append(
            f"[{json.dumps(name)}]"
            if isinstance(table, dict)
            else f"{json.dumps(name)} = {json.dumps(table)}"
        )
        if isinstance(table, dict):
            lines += [
                f"{json.dumps(key)} = {json.dumps(item).replace('NaN', 'nan').replace('Infinity', 'inf')}"
                for key, item in table.items()
            ]
    return "\n".join(lines)


def _check_finite(config: TrainConfig) -> None:
    for name, table in dataclasses.asdict(config).items():
        for key, item in table.items():
            if isinstance(item, float) and not abs(item) < float("inf"):
                raise Wrong(f"{name}.{key} is {item}")
            if isinstance(item, int) and abs(item) >= 1 << 63:
                raise Wrong(f"{name}.{key} has more than 64 bits")


def _check_contains(found: dict[str, Any], said: dict[str, Any]) -> None:
    for name, table in said.items():
        for key, item in table.items():
            got = found[name][key]
            if (list(got) if isinstance(got, tuple) else got) != item:
                raise Wrong(f"{name}.{key} is {got!r:.80}, the file says {item!r:.80}")


MAKERS = {"curve": curve, "schedule": schedule, "config": config, "rows": rows}
