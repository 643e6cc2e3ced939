"""docs/architecture.md is true: every module is in the row of its room, and nothing is there that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from i2l.tools.host import ROOT

# room -> the modules that its row names; rooms of other kinds (tests, workflows) name none
ROOMS = {"nodes": "*.py", "i2l_core": "**/*.py", "web": "*.js", "tools": "*.py", "bench": "*.py"}


def rows() -> dict[str, set[str]]:
    """Room -> what its row names in backticks."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = re.findall(r"^\| ((?:`[^`]+/`(?:, )?)+) \| (.*) \|$", text, re.MULTILINE)
    return {
        room.strip("`/"): set(re.findall(r"`([^`]+)`", words))
        for rooms, words in table
        for room in rooms.split(", ")
    }


def modules() -> dict[str, set[str]]:
    """Folder -> the names of its modules."""
    found: dict[str, set[str]] = {}
    for room, pattern in ROOMS.items():
        for path in (ROOT / room).glob(pattern):
            if path.name != "__init__.py" and "__pycache__" not in path.parts:
                found.setdefault(str(path.parent.relative_to(ROOT)), set()).add(path.stem)
    return found


def test_every_module_is_on_the_map():
    map_ = rows()
    missing = [
        f"{folder}/{name}"
        for folder, names in modules().items()
        for name in sorted(names)
        if name not in map_.get(folder, set())
    ]
    assert not missing, f"docs/architecture.md does not name {missing}"


def test_nothing_is_on_the_map_that_does_not_exist():
    known = modules()
    gone = [
        f"{folder}: {name}"
        for folder, names in rows().items()
        if folder in known
        for name in sorted(names)
        if re.fullmatch(r"[a-z_0-9]+", name)
        and name not in known[folder]
        and not (ROOT / folder / name).exists()
    ]
    assert not gone, f"docs/architecture.md names what is not there: {gone}"


def test_the_pages_that_the_map_links_exist():
    folder = ROOT / "docs"
    links = [
        (page, link)
        for page in ("architecture.md", "glossary.md")
        for link in re.findall(r"\]\(([^)#]+)\)", (folder / page).read_text("utf-8"))
    ]
    assert links
    assert [(page, link) for page, link in links if not (folder / Path(link)).exists()] == []
