"""The first minutes of a newcomer: the template browser, start_here, Run, a picture; then reload."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from front_end import BROKEN_LINKS, FrontEnd, new_page
from PIL import Image
from playwright.sync_api import Browser
from server_graphs import REFERENCES, WORKFLOW

from i2l.tools.comfy_server import ComfyServer
from i2l.tools.graph_to_api import graph_to_api

pytestmark = [pytest.mark.browser, pytest.mark.server]


@pytest.fixture(scope="module")
def newcomer(chromium: Browser, comfy_server: ComfyServer) -> Iterator[FrontEnd]:
    """Somebody who has just installed ComfyUI and the pack: its first page is the template browser."""
    for path in REFERENCES:
        (comfy_server.input / path.name).unlink(missing_ok=True)
    with new_page(chromium, comfy_server) as page:
        page.open("")
        yield page


@pytest.fixture(scope="module")
def template(newcomer: FrontEnd) -> dict[str, Any]:
    """What the template browser showed of start_here, which was then opened from it."""
    page = newcomer.page
    page.locator("[data-testid^='template-workflow-']").first.wait_for()  # then the first category is chosen
    page.get_by_text("All Templates").first.click()
    page.get_by_placeholder("Search").fill("start_here")
    card = page.get_by_test_id("template-workflow-start_here")
    card.wait_for()
    picture = card.locator("img").first
    newcomer.wait("(image) => image.complete && image.naturalWidth > 0", picture.element_handle())
    size = picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]")
    found = {"size": tuple(size), "text": card.inner_text()}
    newcomer.screenshot("template_browser")
    card.click()
    newcomer.wait("() => app.graph.nodes.some(({ type }) => type === 'ImagesToLoRA')")
    newcomer.wait("() => app.graph.nodes.filter(({ imgs }) => imgs?.length).length === 4")
    newcomer.screenshot("start_here_opened")
    return found


@pytest.fixture(scope="module")
def finished(newcomer: FrontEnd, template: dict[str, Any]) -> dict[str, Any]:
    """The end of one run, started by one click."""
    end = newcomer.run()
    newcomer.wait("() => app.graph.nodes.some(({ type, imgs }) => type === 'SaveImage' && imgs?.length)")
    newcomer.screenshot("start_here_finished")
    return end


def test_the_template_browser_shows_it_with_its_picture(template):
    assert "start_here" in template["text"]
    with Image.open(WORKFLOW.with_suffix(".jpg")) as image:
        assert template["size"] == image.size


def test_it_opens_whole(newcomer: FrontEnd, template):
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    assert newcomer.ask("() => app.graph.nodes.length") == len(workflow["nodes"])
    assert newcomer.ask("() => [...app.graph.links.values()].length") == len(workflow["links"])
    assert newcomer.ask("() => app.graph.nodes.filter(({ has_errors }) => has_errors).length") == 0
    assert newcomer.ask(BROKEN_LINKS) == []
    assert newcomer.page.get_by_text(re.compile("errors? found|is missing")).count() == 0
    assert newcomer.unexpected == []


def test_its_pictures_came_along(newcomer: FrontEnd, comfy_server: ComfyServer, template):
    for path in REFERENCES:
        assert (comfy_server.input / path.name).read_bytes() == path.read_bytes()
    assert newcomer.nodes("LoadImage", "node.imgs[0].naturalWidth") == [128] * 4


def test_the_front_end_exports_what_tests_queue(newcomer: FrontEnd, comfy_server: ComfyServer, template):
    exported = newcomer.exported()
    ours = graph_to_api(json.loads(WORKFLOW.read_text("utf-8")), comfy_server.client().object_info())
    assert exported == ours


def test_run_draws_a_picture_and_progress_is_seen(newcomer: FrontEnd, comfy_server: ComfyServer, finished):
    assert finished["type"] == "execution_success"
    shown = newcomer.ask("() => seen.titles")
    sampling = [int(m[1]) for title in shown if (m := re.search(r"\[(\d+)%\] KSampler", title))]
    assert (
        sum(two < one for one, two in itertools.pairwise(sampling)) <= 1
    )  # two samplers, one after the other
    assert len(set(sampling)) >= 3
    (picture,) = newcomer.node("SaveImage", "node.imgs.map(({ src, naturalWidth }) => [src, naturalWidth])")
    assert picture[1] == 128
    name = re.search(r"filename=([^&]+)", picture[0])
    assert name is not None
    assert (comfy_server.output / name[1]).exists()
    assert newcomer.unexpected == []


def test_nodes_tell_what_they_did(newcomer: FrontEnd, finished):
    newcomer.wait("() => app.graph.nodes.filter(({ properties }) => properties.i2l_card).length === 2")
    assert "4 references · rank" in newcomer.card("ImagesToLoRA")
    assert re.search(r"× 1\.00 · (\d+) of \1 layers · merged", newcomer.card("ApplyPredictedLoRA"))
    pictures = "node.widgets.find(({ name }) => name === 'i2l_card').element.querySelectorAll('img').length"
    assert newcomer.node("ImagesToLoRA", pictures) == 4
    newcomer.show("LoadI2LDemo", "ImagesToLoRA", "ApplyPredictedLoRA")
    newcomer.screenshot("cards_classic")


def test_a_report_is_no_step_that_undo_takes_back(newcomer: FrontEnd, finished):
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    steps = newcomer.ask(f"() => {tracker}.undoQueue.length")
    newcomer.ask(f"() => {tracker}.captureCanvasState()")
    assert newcomer.ask(f"() => {tracker}.undoQueue.length") == steps


def test_reload_keeps_everything(newcomer: FrontEnd, finished):
    state = (
        "() => { const { nodes, links, groups } = app.graph.serialize(); return { nodes, links, groups }; }"
    )
    before = newcomer.ask(state)
    newcomer.page.wait_for_timeout(1000)  # the front end stores its draft half a second after a change
    newcomer.page.reload()
    newcomer.wait_until_ready()
    newcomer.wait("() => app.graph.nodes.some(({ type }) => type === 'ImagesToLoRA')")
    newcomer.settle()
    assert newcomer.ask(state) == before
    assert "4 references · rank" in newcomer.card("ImagesToLoRA")
    assert newcomer.unexpected == []
    newcomer.show("LoadI2LDemo", "ImagesToLoRA", "ApplyPredictedLoRA")
    newcomer.screenshot("cards_after_reload")


def test_nor_is_what_a_newer_front_end_saves_of_a_node_with_a_card(newcomer: FrontEnd, finished):
    """From 1.51 on a node that has a card saves widget values, though none of them is the card's."""
    newcomer.ask("""() => app.graph.nodes.forEach((node) => {
        if (node.type === "ImagesToLoRA") {
            node.onSerialize = (saved) => { saved.of_widgets = node.widgets?.length ?? 0; };
            delete node.properties.i2l_card;
            node.removeWidget(node.widgets.find(({ name }) => name === "i2l_card"));
        }
        if (node.type === "KSampler") node.widgets.find(({ name }) => /^control/.test(name)).value = "fixed";
    })""")
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    newcomer.ask(f"() => {tracker}.captureCanvasState()")
    steps = newcomer.ask(f"() => {tracker}.undoQueue.length")
    assert newcomer.run()["type"] == "execution_success"
    newcomer.wait("() => app.graph.nodes.some(({ properties }) => properties.i2l_card)")
    newcomer.settle()
    newcomer.ask(f"() => {tracker}.captureCanvasState()")
    assert newcomer.ask(f"() => {tracker}.undoQueue.length") == steps


def test_a_picture_carries_no_card_of_the_run_before(newcomer: FrontEnd, comfy_server: ComfyServer, finished):
    """The workflow in it is of before the run: what a card said then is not about this picture."""
    newcomer.ask("""() => {
        app.graph.nodes.find(({ type }) => type === "KSampler").widgets.find(({ name }) => name === "seed").value = 99;
    }""")
    assert newcomer.run()["type"] == "execution_success"
    newest = max(comfy_server.output.rglob("*.png"), key=lambda path: path.stat().st_mtime)
    with Image.open(newest) as image:
        carried = json.loads(image.info["workflow"])
    assert {"ImagesToLoRA", "KSampler"} <= {node["type"] for node in carried["nodes"]}
    assert not [node["type"] for node in carried["nodes"] if "i2l_card" in node["properties"]]
    assert "4 references" in newcomer.card("ImagesToLoRA")
    assert newcomer.node("ImagesToLoRA", "node.properties.i2l_card.references") == 4
