"""Nodes copied, put into a subgraph and taken out, or bypassed in the real front end: no picture is lost."""

from __future__ import annotations

from typing import Any

import pytest
from front_end import FrontEnd, both_renderers
from server_graphs import find

pytestmark = [pytest.mark.browser, pytest.mark.server]

# Four pictures of different colours and the clip, each on its socket of Images to LoRA.
MAKE = """() => {
    const make = (kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node; };
    const demo = make("LoadI2LDemo"), predict = make("ImagesToLoRA");
    const at = (name) => predict.inputs.findIndex((input) => input.name === name);
    demo.connect(3, predict, at("predictor"));
    demo.connect(1, predict, at("clip"));
    for (let k = 0; k < 4; k++) {
        const picture = make("EmptyImage");
        picture.widgets.find(({ name }) => name === "color").value = k + 1;
        picture.connect(0, predict, at(`images.image${k}`));
    }
}"""
WANT = {"predictor": "demo", "clip": "demo", **{f"images.image{k}": k + 1 for k in range(4)}}

# What each Images to LoRA asks the server for: the colour of a picture, "demo", or what stands between them.
ASKED = """async () => {
    const { output } = await app.graphToPrompt();
    const what = ([id]) => output[id]?.inputs.color ?? (output[id]?.class_type === "LoadI2LDemo" ? "demo" : "other");
    return Object.values(output).filter((node) => node.class_type === "ImagesToLoRA")
        .map(({ inputs }) => Object.fromEntries(Object.entries(inputs).map(([key, value]) => [key, what(value)])));
}"""
INTO_A_SUBGRAPH = """(kind) => {
    app.graph.convertToSubgraph(new Set([app.graph.nodes.find(({ type }) => type === kind)]));
}"""
OUT_OF_IT = "() => { app.graph.unpackSubgraph(app.graph.nodes.find((node) => node.subgraph)); }"


def made(front_end: FrontEnd) -> None:
    front_end.ask(MAKE)
    front_end.settle()
    assert front_end.ask(ASKED) == [WANT]


def copied(front_end: FrontEnd) -> None:
    """All nodes copied and pasted, with the keys that a person uses."""
    count = front_end.ask("() => app.graph.nodes.length")
    front_end.ask("() => app.canvas.selectItems([...app.graph.nodes])")
    front_end.page.mouse.move(1500, 900)
    for key in ("Control+c", "Control+v"):
        front_end.page.keyboard.press(key)
        front_end.page.wait_for_timeout(500)
    front_end.wait("(count) => app.graph.nodes.length === count", 2 * count)
    front_end.settle()


@both_renderers
def test_a_copied_group_keeps_all_pictures_and_clip(front_end: FrontEnd):
    made(front_end)
    copied(front_end)
    assert front_end.ask(ASKED) == [WANT, WANT]


@both_renderers
def test_a_subgraph_keeps_all_pictures_and_clip(front_end: FrontEnd):
    made(front_end)
    front_end.ask(INTO_A_SUBGRAPH, "ImagesToLoRA")
    front_end.settle()
    assert front_end.ask(ASKED) == [WANT]
    front_end.ask(OUT_OF_IT)
    front_end.settle()
    assert front_end.ask(ASKED) == [WANT]


def test_a_bypassed_style_reference_passes_its_picture_on(front_end: FrontEnd):
    """Its picture counts as a plain one then; with a mask on it, too."""
    made(front_end)
    front_end.ask("""() => {
        const add = (kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node; };
        const reference = add("StyleReference"), mask = add("SolidMask");
        const predict = app.graph.nodes.find(({ type }) => type === "ImagesToLoRA");
        const picture = app.graph.nodes.find(({ type }) => type === "EmptyImage");
        picture.connect(0, reference, 0);
        mask.connect(0, reference, reference.inputs.findIndex(({ name }) => name === "mask"));
        reference.connect(0, predict, predict.inputs.findIndex(({ name }) => name === "images.image0"));
        reference.mode = 4;
    }""")
    front_end.settle()
    assert front_end.ask(ASKED) == [WANT]


FUSE = """([count, method]) => {
    const make = (kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node; };
    const demo = make("LoadI2LDemo"), fuse = make("FuseLoRAs");
    const set = (name, value) => {
        const widget = fuse.widgets.find((widget) => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
    };
    set("loras", String(count));
    set("method", method);
    for (let k = 0; k < count; k++) {
        const picture = make("EmptyImage"), predict = make("ImagesToLoRA");
        demo.connect(3, predict, 0);
        picture.connect(0, predict, predict.inputs.findIndex(({ name }) => name === "images.image0"));
        set(`loras.weight_${k + 1}`, (k + 1) / 4);
        predict.connect(0, fuse, fuse.inputs.findIndex(({ name }) => name === `loras.lora_${k + 1}`));
    }
}"""
FUSED = """async () => {
    const { output } = await app.graphToPrompt();
    const ours = Object.values(output).filter((node) => node.class_type === "FuseLoRAs");
    return ours.map(({ inputs }) => Object.fromEntries(Object.entries(inputs).map(([key, value]) =>
        [key, Array.isArray(value) ? output[value[0]].class_type : value])));
}"""


QUEUED = """async (prompt) => {
    const options = { method: "POST", headers: { "Content-Type": "application/json" } };
    const body = JSON.stringify({ prompt, client_id: app.api.clientId });
    return (await app.api.fetchApi("/prompt", { ...options, body })).status;
}"""


def fused(front_end: FrontEnd) -> list[dict[str, Any]]:
    front_end.settle()
    return front_end.ask(FUSED)


@pytest.mark.parametrize(("count", "method"), [(2, "concat"), (4, "svd"), (3, "spectral")])
def test_fuse_loras_copied_and_in_a_subgraph(front_end: FrontEnd, count: int, method: str):
    """Front ends from 1.55 on mix up its cables in a subgraph (help page): then it is refused."""
    front_end.ask(FUSE, [count, method])
    (want,) = fused(front_end)
    assert [want[f"loras.lora_{n}"] for n in range(1, count + 1)] == ["ImagesToLoRA"] * count
    assert (want["loras"], want["loras.weight_2"], want["method"]) == (str(count), 0.5, method)
    copied(front_end)
    assert fused(front_end) == [want, want]
    front_end.start_over()
    front_end.ask(FUSE, [count, method])
    for change in (INTO_A_SUBGRAPH, OUT_OF_IT):
        front_end.ask(change, "FuseLoRAs")
        if fused(front_end) == [want]:
            continue
        prompt = front_end.ask("async () => (await app.graphToPrompt()).output")
        prompt["save"] = {"class_type": "SavePredictedLoRA", "inputs": {"filename": "x"}}
        prompt["save"]["inputs"]["lora"] = [find(prompt, "FuseLoRAs"), 0]
        front_end.expected.append("400")
        before = front_end.ask("() => seen.ends.length")
        if front_end.ask(QUEUED, prompt) != 400:
            front_end.wait("(before) => seen.ends.length > before", before)
            assert "take no cable" in front_end.ask("() => seen.ends.at(-1).exception_message")
        return
