"""What goes wrong in the front end: somebody reads one sentence that says what to do, and can go on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from front_end import BROKEN_LINKS, Dropped, FrontEnd
from server_graphs import REFERENCES, WORKFLOW, start_here

from i2l.tools.comfy_server import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.server]

FIRST_WORKFLOW = json.loads(WORKFLOW.read_text("utf-8"))
OLD_WORKFLOW = json.loads(Path(__file__).with_name("start_here_0_1_0.json").read_text("utf-8"))
MEBIBYTE = 2**20


def node_of(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    (node,) = (node for node in workflow["nodes"] if node["type"] == kind)
    return node


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            Dropped("notes.txt", "text/plain", b"hello"),
            "notes.txt: not a picture that ComfyUI reads. Drop PNG",
        ),
        (Dropped("drawing.svg", "image/svg+xml", b"<svg/>"), "drawing.svg: not a picture that ComfyUI reads"),
        (Dropped("broken.png", "image/png", b"hello"), "broken.png: the file is damaged or no picture."),
        (
            Dropped("huge.png", "image/png", size=200 * MEBIBYTE),
            "huge.png: larger than the 100 MB that this ComfyUI",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Dropped) else "",
)
def test_a_file_that_cannot_be_a_reference(
    front_end: FrontEnd, comfy_server: ComfyServer, file: Dropped, words: str
):
    """The good picture that is dropped with it still becomes one."""
    before = {path.name for path in comfy_server.input.iterdir()}
    front_end.start_over("ImagesToLoRA")
    front_end.drop([file, Dropped.picture(REFERENCES[0])], "ImagesToLoRA")
    assert words in front_end.said(file.name)
    front_end.wait("() => app.graph.nodes.length === 2")
    assert front_end.node("ImagesToLoRA", "node.inputs.filter(({ link }) => link != null).length") == 1
    assert {path.name for path in comfy_server.input.iterdir()} - before <= {REFERENCES[0].name}
    front_end.screenshot(f"dropped_{file.name.replace('.', '_')}")


def test_more_pictures_than_the_node_takes(front_end: FrontEnd):
    front_end.start_over("ImagesToLoRA")
    same = REFERENCES[0].read_bytes()
    front_end.drop([Dropped(f"many_{i}.png", "image/png", same) for i in range(66)], "ImagesToLoRA")
    assert "takes 64 pictures: 2 of those dropped are left out" in front_end.said("64 pictures")
    front_end.wait("() => app.graph.nodes.length === 65")
    wired = "node.inputs.filter(({ name, link }) => name.startsWith('images.') && link != null).length"
    assert front_end.node("ImagesToLoRA", wired) == 64
    front_end.show("ImagesToLoRA", "LoadImage")
    front_end.screenshot("dropped_66")


PLACE = """async (workflow) => {
    const { placePictures } = await import(`/extensions/ComfyUI-i2L/pictures.js?${Math.random()}`);
    await placePictures(workflow);
    return workflow.nodes.filter(({ type }) => type === "LoadImage").map((node) => node.widgets_values[0]);
}"""  # a module of its own: the page has placed these pictures before


def test_a_picture_of_the_same_name_as_one_of_ours_is_left_alone(
    front_end: FrontEnd, comfy_server: ComfyServer
):
    mine = comfy_server.input / REFERENCES[1].name
    mine.write_bytes(REFERENCES[0].read_bytes())
    try:
        found = front_end.ask(PLACE, FIRST_WORKFLOW)
    finally:
        assert mine.read_bytes() == REFERENCES[0].read_bytes()
        mine.write_bytes(REFERENCES[1].read_bytes())
    expected = [path.name for path in REFERENCES]
    expected[1] = f"{REFERENCES[1].stem} (1).png"
    assert found == expected
    assert (comfy_server.input / expected[1]).read_bytes() == REFERENCES[1].read_bytes()


def test_a_picture_that_cannot_be_brought_is_named(front_end: FrontEnd):
    front_end.expected += ["404", "/view"]
    workflow = copy.deepcopy(FIRST_WORKFLOW)
    node = next(node for node in workflow["nodes"] if node["type"] == "LoadImage")
    node["properties"]["i2l_picture"], node["widgets_values"][0] = "references/gone.png", "gone.png"
    front_end.load(workflow)
    said = front_end.said("gone.png")
    assert said.startswith("gone.png: could not be put into ComfyUI's input folder (404 Not Found).")
    assert said.endswith("Choose pictures of your own in the Load Image nodes.")
    # previews ask for it too, once or twice; their complaints must not come in the middle of the next test
    front_end.wait_for_silence()


@pytest.mark.parametrize(
    "path", ["references/../start_here.json", "/etc/passwd", "references/a/b.png", 5, None]
)
def test_a_workflow_cannot_bring_other_files(front_end: FrontEnd, comfy_server: ComfyServer, path: Any):
    before = {file.name for file in comfy_server.input.iterdir()}
    workflow = copy.deepcopy(FIRST_WORKFLOW)
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] == "LoadImage"]
    for node in workflow["nodes"]:
        node["properties"]["i2l_picture"] = path
        node["widgets_values"][0] = str(path).split("/")[-1]
    assert front_end.ask(PLACE, workflow) == [str(path).split("/")[-1]] * 4
    assert {file.name for file in comfy_server.input.iterdir()} == before


def test_a_workflow_of_an_older_version_opens_and_runs(front_end: FrontEnd, comfy_server: ComfyServer):
    for path in REFERENCES:
        comfy_server.client().upload(path.name.replace("neon", "reference"), path.read_bytes())
    front_end.ask("() => app.reloadNodeDefs()")
    old = copy.deepcopy(OLD_WORKFLOW)
    node_of(old, "KSampler")["widgets_values"][2] = 3
    front_end.load(old)
    assert front_end.ask("() => app.graph.nodes.length") == len(old["nodes"])
    assert front_end.ask("() => [...app.graph.links.values()].length") == len(old["links"])
    assert front_end.ask(BROKEN_LINKS) == []
    values = front_end.node("ApplyPredictedLoRA", "node.widgets.map(({ name, value }) => [name, value])")
    assert dict(values) == {
        "strength": 1.0,
        "mode": "auto",
        "start_percent": 0.0,
        "end_percent": 1.0,
        "missing_layers": "error",
        "curve": "",
    }
    assert front_end.run()["type"] == "execution_success"


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("LoadI2LPredictor", "i2l"),
        ("LoadInfinity", "diffusion_models"),
        ("LoadInfinityTextEncoder", "text_encoders"),
        ("LoadInfinityVAE", "vae"),
    ],
)
def test_a_missing_file_is_said_on_the_node_until_it_is_there(
    front_end: FrontEnd, comfy_server: ComfyServer, kind: str, folder: str
):
    file = comfy_server.base / "models" / folder / "browser_test.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    front_end.start_over(kind)
    workflow = front_end.ask("() => app.graph.serialize()")
    node_of(workflow, kind)["widgets_values"] = [file.name]
    front_end.load(workflow)
    sentence = f"{file.name} is not in models/{folder}: put it there and press R, or choose another one here."
    assert front_end.card(kind) == sentence
    front_end.show(kind)
    front_end.screenshot(f"missing_file_{kind}")
    try:
        file.write_bytes(b"")
        front_end.ask("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")  # R
        front_end.wait("() => !app.graph.nodes[0].widgets.some(({ name }) => name === 'i2l_card')")
    finally:
        file.unlink()


def test_a_file_that_another_system_writes_with_other_slashes_is_found(
    front_end: FrontEnd, comfy_server: ComfyServer
):
    folder = comfy_server.base / "models" / "loras" / "style"
    folder.mkdir(parents=True)
    (folder / "ink.safetensors").write_bytes(b"")
    front_end.start_over("LoadLoRAFile")
    front_end.ask("() => app.reloadNodeDefs()")
    workflow = front_end.ask("() => app.graph.serialize()")
    node_of(workflow, "LoadLoRAFile")["widgets_values"][0] = "style\\ink.safetensors"
    front_end.load(workflow)
    assert front_end.node("LoadLoRAFile", "node.widgets[0].value") == "style/ink.safetensors"
    assert front_end.card("LoadLoRAFile") == ""
    assert front_end.page.get_by_test_id("error-overlay").count() == 0


def test_an_error_of_a_node_is_said_on_it_until_the_next_run(front_end: FrontEnd, comfy_server: ComfyServer):
    prompt = start_here(comfy_server.client())
    broken = {key: node for key, node in prompt.items() if node["class_type"] != "LoadImage"}
    front_end.ask("(prompt) => app.loadApiJson(prompt, 'no references')", broken)
    front_end.settle()
    assert front_end.run()["type"] == "execution_error"
    problem = "images: expected at least one reference picture, got none; connect an image"
    assert front_end.card("ImagesToLoRA") == problem
    front_end.show("LoadI2LDemo", "ImagesToLoRA")
    front_end.screenshot("error_on_node")
    front_end.ask(
        """() => {
            const loader = LiteGraph.createNode("LoadImage");
            app.graph.add(loader);
            const node = app.graph.nodes.find(({ type }) => type === "ImagesToLoRA");
            loader.connect(0, node, node.inputs.findIndex(({ name }) => name === "images.image0"));
        }"""
    )
    assert front_end.run()["type"] == "execution_success"
    assert problem not in front_end.card("ImagesToLoRA")


def test_an_error_of_ours_in_a_core_node_is_said_in_the_corner(
    front_end: FrontEnd, comfy_server: ComfyServer
):
    """A mask of other proportions than the picture: only the sampler knows both."""
    prompt = start_here(comfy_server.client())
    (apply,) = (node for node in prompt.values() if node["class_type"] == "ApplyPredictedLoRA")
    prompt["mask"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 256, "height": 64}}
    apply["inputs"] |= {"mode": "live", "mask": ["mask", 0]}
    front_end.ask("(prompt) => app.loadApiJson(prompt, 'mask')", prompt)
    front_end.settle()
    assert front_end.run()["type"] == "execution_error"
    assert "make it of the picture's proportions" in front_end.said("the mask is 256x64")


def test_a_server_that_restarts_in_the_middle_of_a_run(front_end: FrontEnd, comfy_server: ComfyServer):
    """The last test here: everything that the server has cached is gone after it."""
    front_end.expected += ["net::ERR_", "Failed to fetch", "WebSocket"]
    long = copy.deepcopy(FIRST_WORKFLOW)
    for node in long["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 5000
    front_end.load(long)
    front_end.click_run()
    front_end.wait("() => document.title.includes('KSampler')")
    comfy_server.stop()
    comfy_server.start(port=comfy_server.port)
    assert front_end.said("The run that was going on is lost") == (
        "The run that was going on is lost, your workflow is not: press Run again."
    )
    front_end.screenshot("server_restarted")
    front_end.load(FIRST_WORKFLOW)
    assert front_end.run()["type"] == "execution_success"
