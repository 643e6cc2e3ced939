"""Write locales/en/nodeDefs.json from the nodes' schemas: `.venv/bin/python -m tools.english`.

The front end prefers the translation to the schema, so the English one must say the same; a test holds them
together. The other languages are written by hand.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from . import host


def english(schemas: list[Any]) -> dict[str, Any]:
    """The translation file's content: every text of every schema."""
    return {schema.node_id: _entry(schema) for schema in schemas}


def inputs_of(schema: Any) -> dict[str, Any]:
    """Every input by the name that the front end translates; those that a choice brings are named after it."""
    found = {entry.id: entry for entry in schema.inputs}
    for entry in schema.inputs:
        for option in getattr(entry, "options", None) or ():
            found |= {f"{entry.id}_{part.id}": part for part in getattr(option, "inputs", ())}
    return found


def _entry(schema: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"display_name": schema.display_name, "description": schema.description}
    if schema.inputs:
        entry["inputs"] = {
            name: {"name": i.display_name or i.id, "tooltip": i.tooltip}
            for name, i in inputs_of(schema).items()
        }
    if schema.outputs:
        entry["outputs"] = {
            str(place): {"name": o.display_name or o.id, "tooltip": o.tooltip}
            for place, o in enumerate(schema.outputs)
        }
    return entry


def main() -> None:
    host.as_package()
    with tempfile.TemporaryDirectory() as folder:
        host.import_host(Path(folder))
        from i2l.nodes import NODES

        content = english([node.define_schema() for node in NODES])
    path = host.ROOT / "locales" / "en" / "nodeDefs.json"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
