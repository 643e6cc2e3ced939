"""A node of an earlier version that is gone: what replaces it runs in old graphs, and is offered in old workflows.

No node is gone yet, so this is a copy of the pack that says so of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from front_end import BROKEN_LINKS, new_page
from playwright.sync_api import Browser
from server_graphs import WORKFLOW, changed, find, pixels, start_here
from tiny_world import link_pack_with_weights

from i2l.tools.comfy_server import ComfyServer
from i2l.tools.host import PACK_FOLDER, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.server]

EMPTY = "REPLACED: tuple[io.NodeReplace, ...] = ()"
OLD_NODE = "ApplyStyle"
ENTRY = """REPLACED = (
    io.NodeReplace(
        "ApplyPredictedLoRA",
        "ApplyStyle",
        old_widget_ids=["how", "amount"],
        input_mapping=[
            {"new_id": "model", "old_id": "base"},
            {"new_id": "lora", "old_id": "style"},
            {"new_id": "strength", "old_id": "amount"},
            {"new_id": "mode", "set_value": "live"},
        ],
        output_mapping=[{"new_idx": 0, "old_idx": 1}],
    ),
)"""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with a version of the pack in which ApplyStyle has become ApplyPredictedLoRA."""
    base = tmp_path_factory.mktemp("later")
    link_pack_with_weights(base)
    link = base / "custom_nodes" / PACK_FOLDER
    source = link.resolve() if link.exists() else ROOT
    link.unlink(missing_ok=True)
    link.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "nodes":
            (link / path.name).symlink_to(path)
    (link / "nodes").mkdir()
    for path in (source / "nodes").glob("*.py"):
        text = path.read_text("utf-8")
        (link / "nodes" / path.name).write_text(text.replace(EMPTY, ENTRY), "utf-8")
    assert ENTRY in (link / "nodes" / "replaced.py").read_text("utf-8")
    with ComfyServer(base) as running:
        yield running


def test_an_old_graph_runs_as_what_replaces_its_node(later: ComfyServer):
    client = later.client()
    prompt = start_here(client)
    expected = changed(prompt, "ApplyPredictedLoRA", mode="live", strength=0.5)
    apply = find(prompt, "ApplyPredictedLoRA")
    model, lora = (prompt[apply]["inputs"][name] for name in ("model", "lora"))
    old = changed(prompt, "KSampler", model=[apply, 1])
    inputs = {"base": model, "style": lora, "how": "softly", "amount": 0.5}
    old[apply] = {"class_type": OLD_NODE, "inputs": inputs, "_meta": {"title": "Apply Style"}}
    found = pixels(client, client.queue(old))
    assert torch.equal(found, pixels(client, client.queue(expected)))
    assert not torch.equal(found, pixels(client, client.queue(prompt)))


def test_the_front_end_offers_what_replaces_a_node(later: ComfyServer, chromium: Browser):
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    (node,) = (node for node in workflow["nodes"] if node["type"] == "ApplyPredictedLoRA")
    model, lora = (
        next(slot for slot in node["inputs"] if slot["name"] == name) for name in ("model", "lora")
    )
    nothing = {"name": "report", "type": "STRING", "links": []}
    node |= {
        "type": OLD_NODE,
        "inputs": [{**model, "name": "base"}, {**lora, "name": "style"}],
        "outputs": [nothing, *node["outputs"]],
        "widgets_values": ["softly", 0.5],
    }
    for link in workflow["links"]:
        if link[1] == node["id"]:
            link[2] = 1
        if link[3] == node["id"]:
            link[4] = [model["link"], lora["link"]].index(link[0])
    with new_page(chromium, later) as page:
        page.open()
        page.load(workflow)
        page.screenshot("replaced_offered")
        page.page.get_by_test_id("error-overlay-see-errors").click()
        page.page.get_by_role("button", name="Replace Node").click()
        page.wait("() => app.graph.nodes.some(({ type }) => type === 'ApplyPredictedLoRA')")
        page.settle()
        values = dict(page.node("ApplyPredictedLoRA", "node.widgets.map(({ name, value }) => [name, value])"))
        assert (values["strength"], values["mode"]) == (0.5, "live")
        assert page.ask("() => [...app.graph.links.values()].length") == len(workflow["links"])
        assert page.ask(BROKEN_LINKS) == []
        assert page.run()["type"] == "execution_success"
        assert "× 0.50 · " in page.card("ApplyPredictedLoRA")
        page.screenshot("replaced_done")
        assert page.unexpected == []
