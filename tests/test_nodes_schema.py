"""What the artist sees of the nodes: tooltips, help pages, translations, and the workflow that is shipped."""

from __future__ import annotations

import inspect
import json
import re
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from i2l.tools.english import inputs_of
from i2l.tools.host import ROOT
from i2l.tools.surface import FILE

IDS = tuple(json.loads(FILE.read_text("utf-8")))
WORKFLOW = json.loads((ROOT / "workflows" / "start_here.json").read_text("utf-8"))
NODES = {node["id"]: node for node in WORKFLOW["nodes"]}
TITLE = 30  # pixels that a node's title takes above its position


def translations(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def schemas(host) -> dict[str, Any]:
    from i2l.nodes import NODES

    return {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}


def test_what_several_choices_bring_has_one_tooltip(schemas):
    for schema in schemas.values():
        for entry in schema.inputs:
            tooltips: dict[str, str] = {}
            for option in getattr(entry, "options", None) or ():
                for part in getattr(option, "inputs", ()):
                    assert tooltips.setdefault(part.id, part.tooltip) == part.tooltip


def test_every_node_input_and_output_is_explained(schemas):
    for schema in schemas.values():
        assert schema.category == "i2L"
        assert schema.search_aliases
        for entry in (schema, *inputs_of(schema).values(), *schema.outputs):
            text = entry.description if entry is schema else entry.tooltip
            assert text, f"{schema.node_id}: {entry} has no text"
            assert text.endswith(".")


def test_nodes_that_report_do_so_when_they_are_cached(host):
    from i2l.nodes import NODES

    reporting = [node for node in NODES if "Report(" in inspect.getsource(node.execute)]
    assert len(reporting) >= 10
    for node in reporting:
        schema = node.define_schema()
        assert schema.has_intermediate_output or schema.is_output_node, schema.node_id


def test_english_translation_is_what_the_nodes_say(schemas):
    """One text, two places: the front end prefers the translation."""
    english = translations("en")
    assert english.keys() == schemas.keys()
    for id, schema in schemas.items():
        entry = english[id]
        assert (entry["display_name"], entry["description"]) == (schema.display_name, schema.description)
        assert {name: i.tooltip for name, i in inputs_of(schema).items()} == {
            name: text["tooltip"] for name, text in entry.get("inputs", {}).items()
        }
        assert [o.tooltip for o in schema.outputs] == [o["tooltip"] for o in entry["outputs"].values()]


def test_chinese_translation_covers_all(schemas):
    english, chinese = translations("en"), translations("zh")
    assert chinese.keys() == english.keys()
    for id in english:
        for part in ("inputs", "outputs"):
            assert chinese[id].get(part, {}).keys() == english[id].get(part, {}).keys()
            for name, entry in chinese[id].get(part, {}).items():
                assert entry.keys() == english[id][part][name].keys()
                assert all(entry.values())


@pytest.mark.parametrize("id", IDS)
def test_every_node_has_a_help_page(schemas, id: str):
    page = (ROOT / "web" / "docs" / f"{id}.md").read_text("utf-8")
    assert page.startswith(f"# {schemas[id].display_name}\n")
    assert "## Errors and cures" in page
    for entry in (*inputs_of(schemas[id]).values(), *schemas[id].outputs):
        name = re.sub(r"_\d+$", "", entry.id or entry.display_name)  # lora_2 is explained with lora_1
        assert f"**{name}" in page, name


# the shipped workflow, as data


def test_links_of_the_workflow_agree_on_both_ends():
    ends = {link[0]: link for link in WORKFLOW["links"]}
    for number, source, slot, target, place, kind in WORKFLOW["links"]:
        assert number in NODES[source]["outputs"][slot]["links"]
        assert NODES[target]["inputs"][place]["link"] == number
        assert NODES[source]["outputs"][slot]["type"] == NODES[target]["inputs"][place]["type"] == kind
    for node in NODES.values():
        assert all(entry["link"] in ends for entry in node["inputs"] if entry["link"] is not None)
    assert WORKFLOW["last_node_id"] == max(NODES)
    assert WORKFLOW["last_link_id"] == max(ends)


def test_our_nodes_in_the_workflow_have_the_sockets_of_their_schema(schemas):
    for node in NODES.values():
        schema = schemas.get(node["type"])
        if schema is None:
            continue
        assert [o["name"] for o in node["outputs"]] == [o.id or o.display_name for o in schema.outputs]
        names = {entry["name"].split(".")[0] for entry in node["inputs"]}
        widgets = len(node.get("widgets_values", []))
        assert len(names) + widgets == len(schema.inputs)


def test_nothing_overlaps_and_every_node_is_in_one_group():
    boxes = {
        node["id"]: (x, y - TITLE, x + node["size"][0], y + node["size"][1])
        for node in NODES.values()
        for x, y in [node["pos"]]
    }
    for (a, one), (b, two) in combinations(boxes.items(), 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, f"{NODES[a]['type']} and {NODES[b]['type']} overlap"
    groups = [(x, y, x + w, y + h) for group in WORKFLOW["groups"] for x, y, w, h in [group["bounding"]]]
    for id, (left, top, right, bottom) in boxes.items():
        inside = [g for g in groups if g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3]]
        assert len(inside) == (0 if NODES[id]["type"] == "MarkdownNote" else 1), NODES[id]["type"]
    assert all(group["title"] for group in WORKFLOW["groups"])


def test_pictures_of_the_workflow_are_shipped():
    names = [node["widgets_values"][0] for node in NODES.values() if node["type"] == "LoadImage"]
    assert len(names) == len(set(names)) >= 2
    for name in names:
        with Image.open(ROOT / "workflows" / "references" / name) as image:
            assert image.size == (128, 128)
            assert image.mode == "RGB"
