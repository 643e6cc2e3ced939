"""Write tests/surface.json, what graphs and saved workflows know of our nodes: `.venv/bin/python -m tools.surface`.

It is frozen: a test compares it with the nodes. A line is an input, one of its choices, or an output,

    strength FLOAT = 1.0
    mode COMBO = "merged" (optional)
    mode: live
    method: svd: rank INT = 0           an input that the choice "svd" brings

in the order in which workflows store the values of widgets. Texts and limits may change.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from . import host

Surface = dict[str, dict[str, list[str]]]  # node id -> "inputs", "outputs" -> lines

FILE = host.ROOT / "tests" / "surface.json"
OPTIONAL = " (optional)"


def surface(nodes: Iterable[Any]) -> Surface:
    """The surface of node classes."""
    infos = [node.GET_NODE_INFO_V1() for node in nodes]
    return {
        info["name"]: {"inputs": list(_inputs(info["input"], info["input_order"])), "outputs": _outputs(info)}
        for info in infos
    }


def broken(old: Surface, new: Surface) -> list[str]:
    """What graphs and workflows that were made with `old` miss in `new`; more at the end of a list breaks none."""
    found = []
    for id, lists in old.items():
        if id not in new:
            found.append(f"{id} is gone")
            continue
        for part, lines in lists.items():
            before, after = _grouped(lines), _grouped(new[id][part])
            for group, entries in before.items():
                now = after.get(group, [])
                where = f"{id}, {part}{f' of {group}' if group else ''}"
                if now[: len(entries)] != entries:
                    one, other = next(pair for pair in zip_longest(entries, now) if pair[0] != pair[1])
                    found.append(f"{where}: {one} became {other or 'nothing'}")
                elif part == "inputs" and not _is_choice(group):
                    more = [line for line in now[len(entries) :] if OPTIONAL not in line]
                    found += [f"{where}: {line} is new and not optional" for line in more]
    return found


def _grouped(lines: Iterable[str]) -> dict[str, list[str]]:
    """Lines by what they belong to: "" for the node itself, "mode" for its choices, "method: svd" for its inputs."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        group, _, entry = line.rpartition(": ")
        groups.setdefault(group, []).append(entry)
    return groups


def _is_choice(group: str) -> bool:
    """Whether what belongs to it are choices: "mode", not "" and not "mode: live"."""
    return bool(group) and group.count(": ") % 2 == 0


def _inputs(given: Mapping[str, Any], order: Mapping[str, list[str]], prefix: str = "") -> Iterator[str]:
    for part, names in order.items():
        for name in names:
            kind, options = (*given[part][name], {})[:2]
            optional = OPTIONAL if part == "optional" else ""
            if "template" in options:
                template = options["template"]
                (entry,) = (one for inputs in template["input"].values() for one in inputs.values())
                kind = f"{kind} of {entry[0]}, up to {template['max']}"
            default = f" = {json.dumps(options['default'])}" if "default" in options else ""
            yield f"{prefix}{name} {kind}{default}{optional}"
            for choice in options.get("options", ()):
                if isinstance(choice, dict):
                    key, inputs = f"{prefix}{name}: {choice['key']}", choice["inputs"]
                    yield key
                    yield from _inputs(inputs, {part: list(inputs[part]) for part in inputs}, f"{key}: ")
                elif default:  # a list of files has none
                    yield f"{prefix}{name}: {choice}"


def _outputs(info: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {kind}{' (list)' if many else ''}"
        for name, kind, many in zip(info["output_name"], info["output"], info["output_is_list"], strict=True)
    ]


def main() -> None:
    host.as_package()
    with tempfile.TemporaryDirectory() as folder:
        host.import_host(Path(folder))
        from i2l.nodes import NODES

        FILE.write_text(json.dumps(surface(NODES), ensure_ascii=False, indent=1) + "\n", "utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
