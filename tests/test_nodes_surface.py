"""What graphs and saved workflows know of our nodes is frozen: ids, inputs, defaults, choices, order, outputs."""

from __future__ import annotations

import difflib
import json

import pytest

from i2l.tools.host import ROOT
from i2l.tools.surface import FILE, broken, surface

FROZEN = json.loads(FILE.read_text("utf-8"))
BROKEN = """\
Graphs and saved workflows break:
  {problems}
Leave the node as it is; or give the changed one a new id, say in nodes/replaced.py what replaces the old one, and
test that a workflow which holds it opens and runs. """


def test_the_surface_of_the_nodes_is_frozen(host):
    from i2l.nodes import NODES

    now = surface(NODES)
    if now == FROZEN:
        return
    before, after = (json.dumps(each, ensure_ascii=False, indent=1).splitlines() for each in (FROZEN, now))
    changes = "\n".join(difflib.unified_diff(before, after, "tests/surface.json", "nodes", lineterm="", n=1))
    problems = broken(FROZEN, now)
    text = BROKEN.format(problems="\n  ".join(problems)) if problems else "No workflow breaks. "
    pytest.fail(
        f"{changes}\n\n{text}Then add a line to CHANGELOG.md and run `.venv/bin/python -m tools.surface`.",
        pytrace=False,
    )


@pytest.mark.parametrize("id", FROZEN)
def test_every_node_is_in_the_changelog(id: str):
    assert f"`{id}`" in (ROOT / "CHANGELOG.md").read_text("utf-8")


OLD = {
    "Style": {
        "inputs": [
            "model MODEL",
            "strength FLOAT = 1.0",
            'mode COMBO = "a b"',
            "mode: a b",
            "mode: c",
            "how COMFY_DYNAMICCOMBO_V3",
            "how: svd",
            "how: svd: rank INT = 0",
            "mask MASK (optional)",
        ],
        "outputs": ["model MODEL"],
    }
}


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("mask MASK (optional)", 'mask MASK (optional)|curve STRING = "" (optional)', ""),
        ("mode: c", "mode: c|mode: d e", ""),
        ("how: svd: rank INT = 0", "how: svd: rank INT = 0|how: sum|how: sum: t FLOAT = 0.5", ""),
        ("mask MASK (optional)", "mask MASK (optional)|seed INT = 0", "seed INT = 0 is new and not optional"),
        ("strength FLOAT = 1.0", "strength FLOAT = 0.8", "strength FLOAT = 0.8"),
        ("strength FLOAT = 1.0", "strength INT = 1", "strength INT = 1"),
        (
            "strength FLOAT = 1.0",
            "x INT = 0 (optional)|strength FLOAT = 1.0",
            "inputs: strength FLOAT = 1.0 became x INT",
        ),
        ("strength FLOAT = 1.0", "amount FLOAT = 1.0", "amount FLOAT"),
        ("mode: a b", "mode: x|mode: a b", "inputs of mode: a b became x"),
        ("mode: c", "", "inputs of mode: c became nothing"),
        ("how: svd: rank INT = 0", "", "inputs of how: svd: rank INT = 0 became nothing"),
        ("how: svd: rank INT = 0", "how: svd: rank INT = 0|how: svd: k INT = 0", "k INT = 0 is new and not"),
    ],
)
def test_what_breaks_workflows_is_told_from_what_does_not(before: str, after: str, problem: str):
    lines = OLD["Style"]["inputs"]
    place = lines.index(before)
    changed = [*lines[:place], *filter(None, after.split("|")), *lines[place + 1 :]]
    found = broken(OLD, {"Style": {"inputs": changed, "outputs": ["model MODEL", "text STRING"]}, "New": {}})
    assert len(found) == bool(problem)
    assert problem in "".join(found)


def test_nodes_and_outputs_that_are_gone_are_said():
    assert broken(OLD, {}) == ["Style is gone"]
    (problem,) = broken(OLD, {"Style": {**OLD["Style"], "outputs": ["text STRING", "model MODEL"]}})
    assert problem == "Style, outputs: model MODEL became text STRING"
