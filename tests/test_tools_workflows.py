"""The shipped workflows, as data: whole, well laid out, with pictures that ship; and the builder that makes them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from i2l.tools.host import ROOT
from i2l.tools.workflows.columns import placed
from i2l.tools.workflows.graph import BLUE, PLAIN, Look, Workflow, WorkflowError
from i2l.tools.workflows.infinity import INFINITY
from i2l.tools.workflows.tiny import TINY

FILES = sorted((ROOT / "workflows").glob("*.json"))
TITLE = 30  # pixels that a node's title takes above its position
NOTES = "MarkdownNote"

SCHEMAS = {
    "Source": {
        "input": {"required": {"seed": ["INT", {"default": 3, "control_after_generate": True}]}},
        "output": ["A"],
        "output_name": ["a"],
    },
    "Sink": {
        "input": {"required": {"a": ["A,B", {}], "text": ["STRING", {}]}, "optional": {"b": ["B", {}]}},
        "output": [],
        "output_name": [],
    },
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text("utf-8"))


def test_links_agree_on_both_ends(workflow: dict[str, Any]):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    ends = {link[0]: link for link in workflow["links"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in output["links"]
        assert entry["link"] == number
        assert output["type"] == kind
        assert kind in entry["type"].split(",") or "*" in (kind, entry["type"])
    for node in nodes.values():
        assert all(entry["link"] in ends for entry in node["inputs"] if entry["link"] is not None)
        assert all(number in ends for entry in node["outputs"] for number in entry["links"] or ())
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(ends)


def test_nothing_overlaps_and_every_node_is_in_one_group(workflow: dict[str, Any]):
    boxes = {
        (node["id"], node["type"]): (x, y - TITLE, x + node["size"][0], y + node["size"][1])
        for node in workflow["nodes"]
        for x, y in [node["pos"]]
    }
    for (a, one), (b, two) in combinations(boxes.items(), 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, f"{a} and {b} overlap"
    groups = [(x, y, x + w, y + h) for group in workflow["groups"] for x, y, w, h in [group["bounding"]]]
    for (id, kind), (left, top, right, bottom) in boxes.items():
        inside = [g for g in groups if g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3]]
        assert len(inside) == (0 if kind == NOTES else 1), (id, kind)
    for one, two in combinations(groups, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
    assert all(group["title"] for group in workflow["groups"])


@pytest.mark.parametrize("name", [*TINY, *INFINITY])
def test_a_screen_of_usual_size_shows_the_demos_whole(name: str):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    boxes = [node["pos"] + node["size"] for node in workflow["nodes"]]
    boxes += [group["bounding"] for group in workflow["groups"]]
    width, height = (2100, 1250) if name == "start_here" else (2560, 1480)
    assert max(x + w for x, _, w, _ in boxes) - min(x for x, _, _, _ in boxes) <= width
    assert max(y + h for _, y, _, h in boxes) - min(y for _, y, _, _ in boxes) <= height


def test_a_note_explains_it_and_nodes_say_where_they_come_from(workflow: dict[str, Any]):
    (note,) = (node for node in workflow["nodes"] if node["type"] == NOTES)
    assert note["widgets_values"][0].startswith("# ")
    for node in workflow["nodes"]:
        if node["type"] != NOTES:
            about = node["properties"]
            assert (about["cnr_id"], about["ver"]) in (("i2l", "0.1.0"), ("comfy-core", "0.30.0"))


def test_its_pictures_are_shipped(workflow: dict[str, Any]):
    pictures = [node for node in workflow["nodes"] if node["type"] in ("LoadImage", "LoadImageMask")]
    names = [node["widgets_values"][0] for node in pictures]
    assert len(names) == len(set(names))
    kinds = {node["type"] for node in workflow["nodes"]}
    if "ImagesToLoRA" in kinds and "ImagesFromFolder" not in kinds:
        assert len(names) >= 2
    for node, name in zip(pictures, names, strict=True):
        assert node["properties"]["i2l_picture"] == f"references/{name}"
        with Image.open(ROOT / "workflows" / "references" / name) as image:
            assert (image.size, image.mode) == ((128, 128), "RGB")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_template_browser_has_its_picture(path: Path):
    with Image.open(path.with_suffix(".jpg")) as image:
        assert image.format == "JPEG"
        assert image.width >= 512


# the builder


def test_boxes_are_read_from_the_top_down_then_to_the_right():
    places, size = placed([(400, 300), (600, 500), (300, 820), (500, 400), (500, 400)])
    assert [(place.left, place.top, place.width) for place in places] == [
        (0, 0, 600),
        (0, 320, 600),
        (620, 0, 300),
        (940, 0, 500),
        (940, 420, 500),
    ]
    assert size == (1440, 820)


def test_a_seed_has_its_control_and_a_linked_widget_its_socket():
    flow = Workflow("test", SCHEMAS)
    flow.group("all", BLUE, 200)
    source = flow.add("Source", Look(control="randomize"))
    flow.add("Sink", a=source["a"], text="x")
    made = flow.as_json()
    assert [node["widgets_values"] for node in made["nodes"]] == [[3, "randomize"], ["x"]]
    assert [entry["name"] for entry in made["nodes"][1]["inputs"]] == ["a", "b", "text"]
    assert made["links"] == [[1, 1, 0, 2, 0, "A"]]
    assert made["nodes"][0]["outputs"][0]["links"] == [1]


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("Other", {}, "the server has no node Other"),
        ("Sink", {"text": "x"}, "Sink needs the input 'a'"),
        ("Sink", {"a": "A", "typo": 1}, "Sink has no input typo: it has a, text, b"),
        ("Sink", {"a": "A", "b": "A"}, "b takes B, not A"),
    ],
)
def test_what_the_schemas_do_not_have_is_an_error(kind: str, inputs: dict[str, Any], message: str):
    flow = Workflow("test", SCHEMAS)
    flow.group("all", BLUE, 200)
    source = flow.add("Source")
    with pytest.raises(WorkflowError, match=message):
        flow.add(
            kind, PLAIN, **{name: source["a"] if value == "A" else value for name, value in inputs.items()}
        )


def test_an_output_that_is_not_there_is_an_error():
    flow = Workflow("test", SCHEMAS)
    flow.group("all", BLUE, 200)
    with pytest.raises(WorkflowError, match="Source has no output 'b'"):
        flow.add("Source")["b"]
