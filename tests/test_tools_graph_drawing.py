"""The graphs on help pages: what they name exists, and the node of the page stands out."""

from __future__ import annotations

import json

import pytest
from PIL import ImageColor

from i2l.tools.card_drawing import ACCENT
from i2l.tools.graph_drawing import MARGIN, Box, Link, graph
from i2l.tools.host import ROOT
from i2l.tools.infinity_graphs import pictures

PAIR = [[Box("A", (), ("model",))], [Box("B", ("model",))]]
FROM_A = ("A", "model")


def test_the_shown_node_stands_out():
    title = (MARGIN + 100, MARGIN + 10)
    one, other = (graph(PAIR, [Link(FROM_A, ("B", "model"))], shown) for shown in "AB")
    assert one.getpixel(title) == ImageColor.getrgb(ACCENT)
    assert other.getpixel(title) != ImageColor.getrgb(ACCENT)
    assert one.size == other.size


def test_a_link_is_drawn_and_one_to_nothing_is_refused():
    linked, free = graph(PAIR, [Link(FROM_A, ("B", "model"))], "A"), graph(PAIR, [], "A")
    assert linked.tobytes() != free.tobytes()
    with pytest.raises(KeyError):
        graph(PAIR, [Link(FROM_A, ("B", "clip"))], "A")


def test_the_graphs_of_infinity_name_what_the_nodes_have(host, monkeypatch):
    import nodes as core
    from i2l.nodes import NODES
    from i2l.tools import infinity_graphs

    drawn: list[Box] = []

    def kept(columns, links, shown):
        drawn.extend(box for column in columns for box in column)
        assert shown in {box.title for column in columns for box in column}
        return graph(columns, links, shown)

    monkeypatch.setattr(infinity_graphs, "graph", kept)
    english = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    ours = {node.define_schema().node_id: node.define_schema() for node in NODES}
    assert set(pictures()) <= set(ours)
    known = {
        english[id]["display_name"]: ({i.id for i in s.inputs}, {o.display_name or o.id for o in s.outputs})
        for id, s in ours.items()
    }
    titles = {name: id for id, name in core.NODE_DISPLAY_NAME_MAPPINGS.items()}
    for box in drawn:
        if box.title in known:
            inputs, outputs = known[box.title]
            assert set(box.inputs) <= inputs
            assert set(box.outputs) <= outputs
        elif box.title != "Words of the style":
            assert any(box.title in name for name in titles)
