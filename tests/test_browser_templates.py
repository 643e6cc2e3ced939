"""Every workflow that ships, opened in both node renderers of the front end: whole, and exported as tests queue it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_end import BROKEN_LINKS, FrontEnd, both_renderers

from i2l.tools.comfy_server import ComfyServer
from i2l.tools.graph_to_api import graph_to_api
from i2l.tools.host import PACK_FOLDER, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.server]

FILES = sorted((ROOT / "workflows").glob("*.json"))
FOLDERS = {  # where the file is that the first widget names
    "UNETLoader": "diffusion_models",
    "CheckpointLoaderSimple": "checkpoints",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "ModelPatchLoader": "model_patches",
    "LoadI2LPredictor": "i2l",
}

# What the template browser does when its card is clicked.
OPEN = """async ([pack, name]) => {
    const response = await fetch(app.api.apiURL(`/workflow_templates/${pack}/${name}.json`));
    await app.loadGraphData(await response.json(), true, true, name, { openSource: "template" });
}"""
PICTURES = """() => {
    const loaders = app.graph.nodes.filter(({ type }) => type.startsWith("LoadImage"));
    return loaders.every(({ imgs }) => imgs?.[0]?.naturalWidth > 0);
}"""
TROUBLE = """() => app.graph.nodes.filter((node) => node.has_errors || !LiteGraph.registered_node_types[node.type])
    .map(({ type }) => type)"""
MISPLACED = """() => app.graph.nodes.flatMap((node) => {
    const [x, y, width, height] = node.getBounding();
    const inside = ({ boundingRect: [left, top, w, h] }) =>
        left <= x + 1 && top <= y + 1 && x + width <= left + w + 1 && y + height <= top + h + 1;
    const over = app.graph.nodes.filter((other) => {
        const [left, top, w, h] = other.getBounding();
        return other !== node && x < left + w && left < x + width && y < top + h && top < y + height;
    });
    const out = node.type !== "MarkdownNote" && !app.graph.groups.some(inside);
    return [...over.map(({ type }) => `${node.type} on ${type}`), ...(out ? [`${node.type} out of its group`] : [])];
})"""

# As after a run, with what our nodes report then.
REPORT = """() => {
    const blocks = [["main blocks", 0, 0.6], ["main blocks", 1, 0.4]];
    const lora = { role: "style", rank: 4, layers: 40, blocks };
    const applied = { ...lora, landed: 40, mode: "live", strength: 1 };
    const line = "4 references, rank 4, 40 layers, and whatever else there is to say of it";
    const picture = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
    const guided = { loras: [applied, { ...applied, role: "neutral" }] };
    const cards = {
        ImagesToLoRA: { references: 4, id: "x", thumbnails: Array(4).fill(picture), loras: [lora] },
        ApplyPredictedLoRA: { loras: [applied] },
        AsymmetricCFG: guided,
        AsymmetricGuider: guided,
    };
    for (const node of app.graph.nodes) {
        const { python_module: module, has_intermediate_output: reports } = node.constructor.nodeData ?? {};
        if (module === "custom_nodes.ComfyUI-i2L" && (reports || node.type === "SavePredictedLoRA"))
            node.onExecuted({ i2l_card: [cards[node.type] ?? { lines: [line] }] });
    }
}"""


@pytest.fixture(scope="module")
def model_files(comfy_server: ComfyServer) -> Iterator[None]:
    """Empty files under the names of all models that workflows ask for: the front end looks for the names."""
    made: list[Path] = []
    for path in FILES:
        for node in json.loads(path.read_text("utf-8"))["nodes"]:
            if node["type"] in FOLDERS:
                name = node["widgets_values"][0]
                file = comfy_server.base / "models" / FOLDERS[node["type"]] / name
                made.append(file / "model.py" if name.endswith("/") else file)
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    yield
    for file in set(made):
        file.unlink()


@both_renderers
@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_it_opens_whole(front_end: FrontEnd, comfy_server: ComfyServer, model_files: None, name: str):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    front_end.ask(OPEN, [PACK_FOLDER, name])
    front_end.wait(PICTURES)
    front_end.settle()
    assert front_end.ask("() => app.graph.nodes.length") == len(workflow["nodes"])
    assert front_end.ask("() => [...app.graph.links.values()].length") == len(workflow["links"])
    assert front_end.ask(BROKEN_LINKS) == []
    assert front_end.ask(TROUBLE) == []
    assert front_end.page.get_by_test_id("error-overlay").count() == 0
    assert front_end.ask(MISPLACED) == []
    exported = front_end.exported()
    assert exported == graph_to_api(workflow, comfy_server.client().object_info())
    front_end.ask(REPORT)
    front_end.show_all()
    front_end.screenshot(f"template_{name}_{front_end.renderer}")
    assert front_end.ask(MISPLACED) == []


SEEN = """() => {
    const [x, y] = app.graph.nodes.find(({ type }) => type === "MarkdownNote").pos;
    const corner = app.canvasPosToClientPos([x, y]);
    const boxes = app.graph.groups.map(({ boundingRect }) => boundingRect);
    const end = app.canvasPosToClientPos([0, 1].map((i) => Math.max(...boxes.map((box) => box[i] + box[i + 2]))));
    const { low_quality: blank } = app.canvas;
    return { blank, corner: [...corner], end: [...end], size: [innerWidth, innerHeight] };
}"""
SIZES = [(1366, 768), (1920, 1080)]


@pytest.mark.parametrize("size", SIZES, ids=["1366", "1920"])
@pytest.mark.parametrize("front_end", [{}], indirect=True)
def test_it_opens_so_that_it_can_be_read(front_end: FrontEnd, size: tuple[int, int]):
    width, height = size
    usual = front_end.page.viewport_size
    assert usual is not None
    front_end.page.set_viewport_size({"width": width, "height": height})
    try:
        for name in [path.stem for path in FILES]:
            front_end.ask(OPEN, [PACK_FOLDER, name])
            front_end.settle()
            seen = front_end.ask(SEEN)
            assert not seen["blank"], name
            left, top = seen["corner"]
            assert 60 <= left < width / 2, (name, seen)
            assert 60 <= top < height / 2, (name, seen)
            if name == "start_here":
                front_end.screenshot(f"opened_{name}_{width}")
                assert width < 1900 or (seen["end"][0] < width and seen["end"][1] < height), seen
    finally:
        front_end.page.set_viewport_size(usual)


def test_a_view_of_ones_own_is_kept(front_end: FrontEnd):
    workflow = json.loads((ROOT / "workflows" / "start_here.json").read_text("utf-8"))
    workflow["extra"]["ds"] = {"scale": 1.25, "offset": [-300, -200]}
    front_end.load(workflow)
    assert front_end.ask("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]") == [1.25, -300, -200]
