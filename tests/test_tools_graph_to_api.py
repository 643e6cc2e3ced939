from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from i2l.tools.graph_to_api import GraphError, graph_to_api

INFO: dict[str, Any] = {
    "Load": {"input": {"required": {"image": [["a.png", "b.png"], {"image_upload": True}]}}},
    "Style": {
        "input": {
            "required": {
                "images": [
                    "COMFY_AUTOGROW_V3",
                    {
                        "template": {
                            "input": {"required": {"image": ["IMAGE", {}]}},
                            "prefix": "image",
                            "min": 1,
                        }
                    },
                ],
                "strength": ["FLOAT", {"default": 1.0}],
            },
            "optional": {"note": ["STRING", {"default": "", "multiline": True}]},
        },
        "display_name": "Style from pictures",
    },
    "Sample": {
        "input": {
            "required": {
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "style": ["MODEL", {}],
                "name": ["COMBO", {"options": ["x", "y"]}],
            }
        },
        "input_order": {"required": ["style", "seed", "steps", "name"]},
    },
    "Choose": {
        "input": {
            "required": {
                "mode": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "one", "inputs": {"required": {"a": ["INT", {}]}}},
                            {"key": "two", "inputs": {"required": {"b": ["FLOAT", {}], "c": ["STRING", {}]}}},
                        ]
                    },
                ],
                "last": ["INT", {}],
            }
        }
    },
    "Sharpen": {"input": {"required": {"amount": ["FLOAT", {}], "picture": ["IMAGE", {}]}}},
}


def node(number: int, kind: str, values: Any = (), links: dict[str, Any] | None = None, **more: Any) -> dict:
    """links: input name -> link number, or (link number, type)."""
    sockets = [
        {"name": name, "link": link, "type": "IMAGE"}
        if not isinstance(link, tuple)
        else {"name": name, "link": link[0], "type": link[1]}
        for name, link in (links or {}).items()
    ]
    values = values if isinstance(values, dict) else list(values)
    return {"id": number, "type": kind, "widgets_values": values, "inputs": sockets, **more}


def convert(nodes: list[dict], links: list = []) -> dict[str, Any]:  # noqa: B006 never written
    return graph_to_api({"nodes": nodes, "links": links, "version": 0.4}, INFO)


def test_links_widgets_and_titles():
    api = convert(
        [
            node(1, "Load", ["a.png", "image"]),
            node(2, "Load", ["b.png", "image"], title="Second picture"),
            node(3, "Style", [0.5, "hello"], {"images.image0": 1, "images.image1": 2, "images.image2": None}),
        ],
        [[1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 3, 1, "IMAGE"]],
    )
    assert api["1"] == {"class_type": "Load", "inputs": {"image": "a.png"}, "_meta": {"title": "Load"}}
    assert api["2"]["_meta"] == {"title": "Second picture"}
    assert api["3"] == {
        "class_type": "Style",
        "inputs": {"strength": 0.5, "note": "hello", "images.image0": ["1", 0], "images.image1": ["2", 0]},
        "_meta": {"title": "Style from pictures"},
    }


def test_links_as_objects():
    links = [{"id": 7, "origin_id": 1, "origin_slot": 2, "target_id": 3, "target_slot": 0, "type": "IMAGE"}]
    api = convert([node(1, "Load", ["a.png"]), node(3, "Style", [1.0, ""], {"images.image0": 7})], links)
    assert api["3"]["inputs"]["images.image0"] == ["1", 2]


@pytest.mark.parametrize("control", [["randomize"], ["fixed"], []])
def test_seed_control_is_not_a_value(control):
    api = convert([node(1, "Sample", [42, *control, 8, "y"])])
    assert api["1"]["inputs"] == {"seed": 42, "steps": 8, "name": "y"}


def test_widget_turned_into_a_socket_keeps_its_place():
    api = convert(
        [node(1, "Load", ["a.png"]), node(2, "Sample", [42, "fixed", 8, "y"], {"steps": 5})],
        [[5, 1, 0, 2, 0, "INT"]],
    )
    assert api["2"]["inputs"] == {"seed": 42, "steps": ["1", 0], "name": "y"}


def test_values_by_name():
    api = convert([node(1, "Style", {"strength": 0.25, "note": "n", "button": "Upload"})])
    assert api["1"]["inputs"] == {"strength": 0.25, "note": "n"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["one", 3, 9], {"mode": "one", "mode.a": 3, "last": 9}),
        (["two", 0.5, "t", 9], {"mode": "two", "mode.b": 0.5, "mode.c": "t", "last": 9}),
    ],
)
def test_dynamic_combo(values, expected):
    assert convert([node(1, "Choose", values)])["1"]["inputs"] == expected


def test_values_missing_at_the_end_get_the_default():
    assert convert([node(1, "Style", [0.5])])["1"]["inputs"] == {"strength": 0.5, "note": ""}


def test_value_missing_without_default_is_an_error():
    with pytest.raises(GraphError, match=r"node 1 \(Sample\): the file has no value for the input 'name'"):
        convert([node(1, "Sample", [42, "fixed", 8])])


def test_notes_and_muted_nodes_go():
    api = convert(
        [
            node(1, "Load", ["a.png"], mode=2),
            node(2, "Note", ["read me"]),
            node(3, "MarkdownNote", ["# read me"]),
            node(4, "Style", [1.0, ""], {"images.image0": 1}),
        ],
        [[1, 1, 0, 4, 0, "IMAGE"]],
    )
    assert set(api) == {"4"}
    assert "images.image0" not in api["4"]["inputs"]


def test_reroutes_and_bypassed_nodes_are_looked_through():
    api = convert(
        [
            node(1, "Load", ["a.png"]),
            node(2, "Reroute", [], {"": 1}),
            node(3, "Sharpen", [0.5], {"picture": 2}, mode=4),
            node(4, "Style", [1.0, ""], {"images.image0": 3}),
        ],
        [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"]],
    )
    assert set(api) == {"1", "4"}
    assert api["4"]["inputs"]["images.image0"] == ["1", 0]


def test_bypassed_node_without_fitting_input_leaves_the_input_out():
    api = convert(
        [
            node(3, "Sharpen", [0.5], {"picture": None}, mode=4),
            node(4, "Style", [1.0, ""], {"images.image0": 3}),
        ],
        [[3, 3, 0, 4, 0, "IMAGE"]],
    )
    assert "images.image0" not in api["4"]["inputs"]


def test_primitive_brings_its_value():
    api = convert(
        [node(1, "PrimitiveNode", [77, "fixed"]), node(2, "Sample", [1, "fixed", 8, "y"], {"seed": 5})],
        [[5, 1, 0, 2, 0, "INT"]],
    )
    assert set(api) == {"2"}
    assert api["2"]["inputs"]["seed"] == 77


def test_unknown_class_is_named():
    with pytest.raises(GraphError, match=r"node 9 \(Mystery\): the server has no node class 'Mystery'"):
        convert([node(9, "Mystery")])


@pytest.mark.parametrize(
    ("workflow", "message"),
    [
        ({"1": {"class_type": "Load"}}, "API form"),
        ({"nodes": [], "definitions": {"subgraphs": [{}]}}, "subgraphs"),
        (
            {"nodes": [node(1, "Style", [1.0, ""], {"images.image0": 4})], "links": []},
            "Link 4 comes from nowhere",
        ),
    ],
)
def test_unusable_workflows_are_refused(workflow, message):
    with pytest.raises(GraphError, match=message):
        graph_to_api(workflow, INFO)


def test_reroutes_in_a_circle_are_refused():
    links = [[1, 2, 0, 1, 0, "*"], [2, 1, 0, 2, 0, "*"], [3, 1, 0, 3, 0, "*"]]
    nodes = [node(1, "Reroute", [], {"": 1}), node(2, "Reroute", [], {"": 2})]
    with pytest.raises(GraphError, match="leads back to itself"):
        convert([*nodes, node(3, "Style", [1.0, ""], {"images.image0": 3})], links)


def test_stock_text_to_image_graph(host):
    """The workflow that the front end opens first, with the schemas of the host's own classes."""
    import comfyui_workflow_templates_json

    import nodes

    folder = Path(next(iter(comfyui_workflow_templates_json.__path__)))
    workflow = json.loads((folder / "templates" / "default.json").read_text("utf-8"))
    kinds = {item["type"] for item in workflow["nodes"]} - {"MarkdownNote"}
    info = {kind: {"input": nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()} for kind in kinds}

    api = graph_to_api(workflow, info)

    by_class: dict[str, list[str]] = {}
    for key, item in api.items():
        by_class.setdefault(item["class_type"], []).append(key)
    assert set(by_class) == kinds
    (sampler,) = by_class["KSampler"]
    (loader,) = by_class["CheckpointLoaderSimple"]
    inputs = api[sampler]["inputs"]
    assert inputs["model"] == [loader, 0]
    assert inputs["positive"][0] != inputs["negative"][0]
    assert {inputs["positive"][0], inputs["negative"][0]} == set(by_class["CLIPTextEncode"])
    assert isinstance(inputs["seed"], int)
    assert inputs["sampler_name"] in nodes.KSampler.INPUT_TYPES()["required"]["sampler_name"][0]
    for item in api.values():
        needed = nodes.NODE_CLASS_MAPPINGS[item["class_type"]].INPUT_TYPES()["required"]
        assert set(item["inputs"]) == set(needed)
