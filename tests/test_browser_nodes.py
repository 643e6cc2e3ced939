"""Our nodes in both node renderers of the front end, classic and Vue: cards, warnings, dropped pictures, languages."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from front_end import Dropped, FrontEnd, both_renderers
from PIL import Image
from server_graphs import WORKFLOW, Prompt, changed, find, graph, guided, start_here

from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.lora_files.file import save
from i2l.tools.comfy_server import ComfyServer
from i2l.tools.host import PACK_FOLDER, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.server]

CHINESE = {"Comfy.Locale": "zh"}
in_chinese = pytest.mark.parametrize("front_end", [CHINESE], ids=["zh"], indirect=True)
PICTURES_OF_HELP = """(count) => {
    const found = [...document.querySelectorAll(".node-help-content img")];
    return found.length === count && found.every(({ naturalWidth }) => naturalWidth > 0);
}"""
GLASS = sorted((WORKFLOW.parent / "references").glob("glass_*.png"))
OF_LIBRARY = (
    "ImagesFromFolder",
    "ImagesToLoRA",
    "LoRABlocks",
    "FuseLoRAs",
    "SavePredictedLoRA",
    "LoadLoRAFile",
)


def our_nodes(server: ComfyServer) -> dict[str, Any]:
    info = server.client().object_info()
    return {
        id: about for id, about in info.items() if about["python_module"] == f"custom_nodes.{PACK_FOLDER}"
    }


def apart(boxes: list[list[float]]) -> bool:
    return not any(
        a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


@both_renderers
def test_asymmetric_guidance_shows_both_sides_and_warns_at_cfg_1(
    front_end: FrontEnd, comfy_server: ComfyServer
):
    """The node grows with its card: nothing of it sticks out, in either renderer."""
    strength = 1.0 if front_end.renderer == "classic" else 0.9  # what is cached reports nothing
    prompt = changed(guided(start_here(comfy_server.client()), 1.0), "AsymmetricGuider", strength=strength)
    for unused in ("KSampler", "ApplyPredictedLoRA"):
        del prompt[find(prompt, unused)]
    front_end.ask("(prompt) => app.loadApiJson(prompt, 'guided')", prompt)
    front_end.settle()
    assert front_end.run()["type"] == "execution_success"

    front_end.show("AsymmetricGuider", "ImagesToLoRA")
    front_end.screenshot(f"guider_cfg_1_{front_end.renderer}")
    text = front_end.card("AsymmetricGuider")
    assert re.search(rf"style × {strength:.2f} · (\d+) of \1 layers · positive", text)
    assert re.search(r"neutral × 1\.00 · (\d+) of \1 layers · negative", text)
    warning = front_end.page.locator(".i2l-warning")
    assert warning.is_visible()
    assert "cfg is 1" in warning.inner_text()
    card = front_end.page.locator(".i2l-card", has=warning).bounding_box()
    assert card is not None
    left, top, width, height = front_end.node(
        "AsymmetricGuider",
        """(() => {
            const [x, y] = app.canvasPosToClientPos([node.pos[0], node.pos[1]]);
            return [x, y, node.size[0] * app.canvas.ds.scale, node.size[1] * app.canvas.ds.scale];
        })()""",
    )
    assert left <= card["x"]
    assert card["x"] + card["width"] <= left + width + 1
    assert top <= card["y"]
    assert card["y"] + card["height"] <= top + height + 1

    front_end.ask(
        "(prompt) => app.loadApiJson(prompt, 'guided')", changed(prompt, "AsymmetricGuider", cfg=3.0)
    )
    front_end.run()
    assert "neutral × 1.00" in front_end.card("AsymmetricGuider")
    assert "cfg" not in front_end.card("AsymmetricGuider")


def test_what_is_cached_says_again_what_it_said(front_end: FrontEnd, comfy_server: ComfyServer):
    """The second of two equal graphs runs nothing, and shows the same."""
    prompt = start_here(comfy_server.client())
    cards = []
    for name in ("first", "second"):
        front_end.ask("([prompt, name]) => app.loadApiJson(prompt, name)", [prompt, name])
        front_end.settle()
        assert front_end.run()["type"] == "execution_success"
        cards.append((front_end.card("ImagesToLoRA"), front_end.card("ApplyPredictedLoRA")))
    assert cards[0] == cards[1]
    assert "4 references" in cards[1][0]


@pytest.mark.parametrize("card", [5, "x", {"loras": 5}, {"loras": [{"landed": 1}]}, {"warnings": [None]}])
def test_a_workflow_loads_whatever_its_card_holds(front_end: FrontEnd, card: Any):
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    (node,) = (node for node in workflow["nodes"] if node["type"] == "ImagesToLoRA")
    node["properties"]["i2l_card"] = card
    front_end.load(workflow)
    assert front_end.ask("() => app.graph.nodes.length") == len(workflow["nodes"])
    assert front_end.ask("() => [...app.graph.links.values()].length") == len(workflow["links"])


@pytest.fixture(scope="module")
def library(comfy_server: ComfyServer) -> Prompt:
    """Two styles in a folder with many broken pictures, each cut down to some blocks, mixed and saved."""
    folder = comfy_server.input / "styles"
    for style, colour in {"ink": "black", "oil": "red"}.items():
        (folder / style).mkdir(parents=True)
        Image.new("RGB", (64, 48), colour).save(folder / style / "one.png")
    for i in range(12):
        (folder / "ink" / f"broken_{i}.png").write_bytes(b"nothing that Pillow reads")
    lora = LoRA({Target("layers.0.attention.qkv"): LowRank(torch.rand(2, 8), torch.rand(24, 2))})
    loras = comfy_server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    save(lora, loras / "browser.safetensors")
    fusion = {"loras": "2", "loras.lora_1": ["blocks", 0], "loras.weight_1": 1.0, "method": "concat"}
    strengths = dict.fromkeys(("attention", "mlp", "other", "image", "text"), 1.0)
    return graph(
        demo=("LoadI2LDemo", {}),
        styles=("ImagesFromFolder", {"folder": "styles", "most_pictures": 20}),
        predict=("ImagesToLoRA", {"predictor": ["demo", 3], "images.image0": ["styles", 0]}),
        blocks=("LoRABlocks", {"lora": ["predict", 0], "preset": "everywhere", "depth": "", **strengths}),
        fuse=("FuseLoRAs", {**fusion, "loras.lora_2": ["blocks", 0], "loras.weight_2": 0.5}),
        save=("SavePredictedLoRA", {"lora": ["fuse", 0], "filename": ["styles", 1]}),
        file=("LoadLoRAFile", {"lora_name": "browser.safetensors"}),
        preview=("LoRAPreview", {"lora": ["file", 0], "width": 600}),
    )


@both_renderers
def test_what_a_node_reports_stands_on_it(front_end: FrontEnd, library: Prompt):
    """Also of a node that ran for each entry of a list, and also when it is long: then it is scrolled."""
    front_end.ask("() => app.refreshComboInNodes()")  # files that have come since
    front_end.ask("(prompt) => app.loadApiJson(prompt, 'library')", library)
    front_end.settle()
    end = front_end.run()
    assert end["type"] == "execution_success", end
    front_end.wait("() => app.graph.nodes.filter(({ properties }) => properties.i2l_card).length === 6")
    assert front_end.card("ImagesFromFolder").startswith("2 styles, 2 pictures\nleft out: ")
    assert front_end.card("ImagesToLoRA").startswith("style 1 reference · rank 4 · 40 layers\n")
    assert "The last of 2 runs." in front_end.card("ImagesToLoRA")
    assert front_end.card("LoRABlocks") == "acts in 40 of 40 layers"
    assert re.fullmatch(
        r"saved as ink.*\.safetensors\nsaved as oil.*\.safetensors", front_end.card("SavePredictedLoRA")
    )
    assert front_end.card("FuseLoRAs") == "rank 4 + 4 -> 8, the exact sum"
    assert front_end.card("LoadLoRAFile") == "1 layers, rank 2, for an unknown base model"

    front_end.show("ImagesFromFolder")
    box = front_end.page.locator(".i2l-lines", has_text="2 styles, 2 pictures")
    shown, whole = box.evaluate("(box) => [box.clientHeight, box.scrollHeight]")
    assert shown == 8 * 16 < whole
    scale = front_end.ask("() => app.canvas.ds.scale")
    box.click()
    front_end.page.mouse.wheel(0, 50)
    box.evaluate(
        "(box) => new Promise((done) => box.scrollTop ? done() : box.addEventListener('scroll', done))"
    )
    assert front_end.ask("() => app.canvas.ds.scale") == scale
    front_end.show("ImagesToLoRA")
    front_end.page.locator(".i2l-bars").hover()
    scale = front_end.ask("() => app.canvas.ds.scale")
    front_end.page.mouse.wheel(0, 50)
    front_end.wait("(scale) => app.canvas.ds.scale < scale", scale)
    front_end.show(*OF_LIBRARY)
    front_end.screenshot(f"reports_{front_end.renderer}")
    with front_end.light():
        front_end.screenshot(f"reports_{front_end.renderer}_light")


@both_renderers
def test_pictures_dropped_on_the_node_become_its_references(front_end: FrontEnd, comfy_server: ComfyServer):
    front_end.start_over("LoadI2LDemo", "ImagesToLoRA")
    front_end.show("LoadI2LDemo", "ImagesToLoRA")
    front_end.drop([Dropped.picture(path) for path in GLASS[:3]], "ImagesToLoRA")
    front_end.wait(
        "() => app.graph.nodes.filter(({ imgs, type }) => type === 'LoadImage' && imgs).length === 3"
    )
    front_end.settle()

    wired = front_end.node("ImagesToLoRA", "node.inputs.map(({ name, link }) => [name, link != null])")
    assert [entry for entry in wired if entry[0].startswith("images.")] == [
        ["images.image0", True],
        ["images.image1", True],
        ["images.image2", True],
        ["images.image3", False],
    ]
    first = "node.widgets.find(({ name }) => name === 'image').value"
    assert front_end.nodes("LoadImage", first) == [path.name for path in GLASS[:3]]
    for path in GLASS[:3]:
        assert (comfy_server.input / path.name).read_bytes() == path.read_bytes()
    exported = front_end.ask("async () => (await app.graphToPrompt()).output")
    assert len(exported[find(exported, "ImagesToLoRA")]["inputs"]) == 3
    assert apart(front_end.ask("() => app.graph.nodes.map((node) => [...node.getBounding()])"))
    front_end.show("ImagesToLoRA", "LoadImage", "LoadI2LDemo")
    front_end.screenshot(f"dropped_{front_end.renderer}")

    front_end.ask("() => app.extensionManager.command.execute('Comfy.Undo')")
    front_end.wait("() => app.graph.nodes.length === 2")
    assert front_end.node("ImagesToLoRA", "node.inputs.filter(({ link }) => link != null).length") == 0


def test_more_pictures_are_added_to_those_that_are_there(front_end: FrontEnd):
    front_end.load(json.loads(WORKFLOW.read_text("utf-8")))
    front_end.drop([Dropped.picture(GLASS[3])], "ImagesToLoRA")
    front_end.wait("() => app.graph.nodes.filter(({ type }) => type === 'LoadImage').length === 5")
    assert front_end.node("ImagesToLoRA", "node.inputs.filter(({ link }) => link != null).length") == 6
    assert apart(front_end.ask("() => app.graph.nodes.map((node) => [...node.getBounding()])"))


@in_chinese
def test_chinese(front_end: FrontEnd, comfy_server: ComfyServer):
    """Names of nodes and sockets, and what a card that was saved with the workflow says."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    (node,) = (node for node in workflow["nodes"] if node["type"] == "ImagesToLoRA")
    lora = {
        "role": "style",
        "rank": 4,
        "layers": 40,
        "blocks": [["main blocks", 0, 0.6], ["main blocks", 1, 0.4]],
    }
    node["properties"]["i2l_card"] = {"references": 3, "loras": [lora]}
    front_end.load(workflow)
    names = comfy_server.client().get("/i18n")["zh"]["nodeDefs"]
    for kind in ("LoadI2LDemo", "ImagesToLoRA", "ApplyPredictedLoRA"):
        assert front_end.node(kind, "node.title") == names[kind]["display_name"]
    socket = front_end.node("ImagesToLoRA", "node.inputs[0].localized_name")
    assert socket == names["ImagesToLoRA"]["inputs"]["predictor"]["name"]

    assert "3 张参考图 · 秩 4 · 40 层" in front_end.card("ImagesToLoRA")
    front_end.show("LoadI2LDemo", "ImagesToLoRA", "ApplyPredictedLoRA")
    front_end.screenshot("chinese")


LABELS = """() => Object.fromEntries(app.graph.nodes.map((node) => [node.type, {
    title: node.title,
    inputs: Object.fromEntries([
        ...node.inputs.map((input) => [input.name, input.localized_name ?? input.label]),
        ...(node.widgets ?? []).map((widget) => [widget.name, widget.label]),
    ]),
    outputs: node.outputs.map((output) => output.localized_name ?? output.label),
}]))"""


@in_chinese
def test_every_name_on_our_nodes_is_chinese(front_end: FrontEnd, comfy_server: ComfyServer):
    ours = our_nodes(comfy_server)
    front_end.start_over(*ours)
    names = comfy_server.client().get("/i18n")["zh"]["nodeDefs"]
    for kind, shown in front_end.ask(LABELS).items():
        assert shown["title"] == names[kind]["display_name"]
        inputs = {
            name.replace(".", "_"): entry["name"] for name, entry in names[kind].get("inputs", {}).items()
        }
        for name, label in shown["inputs"].items():
            if (
                not name.startswith("images.") and name != "control_after_generate"
            ):  # numbered; the host's own
                assert label == inputs[name.replace(".", "_")], (kind, name)
        outputs = names[kind].get("outputs", {})
        assert shown["outputs"] == [outputs[str(i)]["name"] for i in range(len(shown["outputs"]))], kind


@pytest.mark.parametrize("front_end", [{}, CHINESE], ids=["en", "zh"], indirect=True)
def test_every_node_opens_its_help_page(front_end: FrontEnd, comfy_server: ComfyServer):
    """In the language of the front end, with its picture."""
    ours = our_nodes(comfy_server)
    assert "ImagesToLoRA" in ours
    chinese = front_end.ask("() => app.extensionManager.setting.get('Comfy.Locale')") == "zh"
    front_end.start_over(*ours)
    for i, kind in enumerate(ours):
        front_end.select(kind)
        if i == 0:
            front_end.page.get_by_test_id("info-button").click()
        page = ROOT / "web" / "docs" / (f"{kind}/zh.md" if chinese else f"{kind}.md")
        text = page.read_text("utf-8")
        heading = front_end.page.locator(
            ".node-help-content h1", has_text=text.splitlines()[0].removeprefix("# ")
        )
        heading.wait_for()
        front_end.wait(PICTURES_OF_HELP, text.count("!["))
    front_end.screenshot(f"help_{'zh' if chinese else 'en'}")
    front_end.ask("() => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
