"""What the artist sees of the nodes: tooltips, help pages, translations."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
from PIL import Image

from i2l.tools.english import inputs_of
from i2l.tools.host import ROOT
from i2l.tools.surface import FILE

IDS = tuple(json.loads(FILE.read_text("utf-8")))


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
        assert schema.category in ("i2L", "i2L/templates", "i2L/Infinity")
        assert schema.search_aliases
        for entry in (schema, *inputs_of(schema).values(), *schema.outputs):
            text = entry.description if entry is schema else entry.tooltip
            assert text, f"{schema.node_id}: {entry} has no text"
            assert text.endswith(".")


def test_nodes_that_report_do_so_when_they_are_cached(host):
    from i2l.nodes import NODES

    reporting = [node for node in NODES if "NodeReport(" in inspect.getsource(node.execute)]
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


def test_a_page_shows_its_node_and_what_to_connect(schemas):
    for id in IDS:
        english, chinese = (
            (ROOT / "web" / "docs" / page).read_text("utf-8") for page in (f"{id}.md", f"{id}/zh.md")
        )
        for page in (english, chinese):
            (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
            with Image.open(ROOT / "web" / "docs" / picture) as image:
                assert image.width >= 400
            assert re.search(r"^- \*.* → .* → \*", page, re.M)


@pytest.mark.parametrize("id", IDS)
def test_the_chinese_page_says_what_the_english_one_does(id: str):
    texts = translations("zh")[id]
    english, chinese = (
        (ROOT / "web" / "docs" / page).read_text("utf-8") for page in (f"{id}.md", f"{id}/zh.md")
    )
    assert chinese.startswith(f"# {texts['display_name']}\n")
    for entry in (*texts.get("inputs", {}).values(), *texts["outputs"].values()):
        name = re.sub(r"_\d+$", "", entry["name"])
        assert f"**{name}" in chinese, name
    assert english.count("\n## ") == chinese.count("\n## ")
    # what the node says is English everywhere
    assert messages(chinese) == messages(english)


def messages(page: str) -> list[str]:
    """The errors that a page names, without remarks in brackets."""
    table = page.rpartition("\n## ")[2]
    return [re.sub(r"[(（].*[)）]", "", row).strip() for row in re.findall(r"^\| (.*?) \|", table, re.M)[1:]]


def test_what_artists_type_finds_the_nodes(schemas):
    typed = {"style transfer", "ip adapter", "image to lora", "style lora"}
    assert typed <= set(schemas["ImagesToLoRA"].search_aliases)
