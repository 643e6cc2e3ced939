"""The real front end in a real browser: what a person does with it, and what they would see."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright

from i2l.tools.chromium import MISSING, find_chromium
from i2l.tools.comfy_server import ComfyServer
from i2l.tools.host import PACK_FOLDER, ROOT

SCREENSHOTS = ROOT / ".runs" / "screenshots"
PATIENCE = 120  # seconds for anything to happen; a page is there in five where nothing else runs
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "Comfy.TutorialCompleted": False,  # else the front end opens its default graph, whose models are not here
    "Comfy.VueNodes.Enabled": False,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Locale": "en",
}
both_renderers = pytest.mark.parametrize(
    "front_end", [{}, {"Comfy.VueNodes.Enabled": True}], ids=["classic", "vue"], indirect=True
)

# What this front end complains of by itself: files that a user may have, a help page in a language that it asks for
# before the one that serves all, an accessor of its own, and addresses that the server forbids it because it runs
# without API nodes.
HOSTS_OWN = re.compile(
    r"/(api/)?user(\.css|data)"
    r"|/docs/\w+/[\w-]+\.md"
    r"|graph accessed before initialization"
    r"|Attempted to access LGraph reference that was null"  # a growing input of a node that was taken away
    r"|violates the (following|document's) Content Security Policy"
)

TOAST = ".p-toast-detail, [data-testid='toast'] .whitespace-pre-line"  # what a message says; the second from 1.58 on

READY = """() => window.app?.vueAppReady && app.extensionManager && window.LiteGraph
    && "ImagesToLoRA" in LiteGraph.registered_node_types"""

RECORD = """() => {
    window.seen = { ends: [], titles: [] };
    for (const type of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(type, ({ detail }) => seen.ends.push({ type, ...detail }));
    const title = () => seen.titles.at(-1) === document.title || seen.titles.push(document.title);
    new MutationObserver(title).observe(document.querySelector("title"), { childList: true });
}"""

# A link is whole when both ends know it and their types fit: any other is drawn red, or dropped.
BROKEN_LINKS = """() => [...app.graph.links.values()].filter((link) => {
    const from = app.graph.getNodeById(link.origin_id)?.outputs[link.origin_slot];
    const to = app.graph.getNodeById(link.target_id)?.inputs[link.target_slot];
    return !from?.links.includes(link.id) || to?.link !== link.id
        || !LiteGraph.isValidConnection(from.type, to.type);
}).map(({ id }) => id)"""

# A point on a node that can be reached: the node was drawn there, and nothing lies over it, such as the curtain of a
# page that has just been loaded.
REACHABLE = """([kind, y]) => {
    const node = app.graph.nodes.find(({ type }) => type === kind);
    const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + y];
    const [left, top] = app.canvasPosToClientPos(at);
    const over = document.elementFromPoint(left, top);
    const free = over === app.canvas.canvas || over?.closest(".lg-node");
    return free && app.graph.getNodeOnPos(...at)?.type === kind ? [left, top] : null;
}"""

ADD = """(kinds) => {
    kinds.forEach((kind, i) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [(i % 4) * 500, Math.floor(i / 4) * 500];
        app.graph.add(node);
    });
}"""

# What undo goes back to. The front end takes no such state while it still loads a graph.
CAPTURED = """(count) => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    tracker.captureCanvasState();
    return tracker.activeState?.nodes.length === count;
}"""

DROP = """([files, x, y]) => {
    const transfer = new DataTransfer();
    for (const { name, type, data, size } of files) {
        const bytes = data ? Uint8Array.from(atob(data), (c) => c.charCodeAt(0)) : new Uint8Array(size);
        transfer.items.add(new File([bytes], name, { type }));
    }
    const at = { bubbles: true, cancelable: true, clientX: x, clientY: y, dataTransfer: transfer };
    const target = document.elementFromPoint(x, y);
    for (const type of ["dragenter", "dragover", "drop"]) target.dispatchEvent(new DragEvent(type, at));
}"""


@dataclass(frozen=True)
class Dropped:
    """A file on its way into the browser; without `data` it is `size` zeros, made there."""

    name: str
    type: str
    data: bytes = b""
    size: int = 0

    @classmethod
    def picture(cls, path: Path) -> Dropped:
        return cls(path.name, "image/png", path.read_bytes())

    def as_json(self) -> dict[str, Any]:
        data = base64.b64encode(self.data).decode()
        return {"name": self.name, "type": self.type, "data": data, "size": self.size}


@dataclass
class FrontEnd:
    """One page of the front end on a running server.

    `complaints`: errors in the console that are not the front end's own; warnings too where they are ours.
    `expected`: complaints that a test provokes.
    """

    page: Page
    server: ComfyServer
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    clicks: int = 0

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._complain(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url')})"
        ours = PACK_FOLDER in text and message.type == "warning"
        if message.type == "error" or ours:
            self._complain(text)

    def _complain(self, text: str) -> None:
        if not HOSTS_OWN.search(text):
            self.complaints.append(text)

    @property
    def renderer(self) -> str:
        """Which of its two node renderers the front end uses."""
        return "vue" if self.ask("() => LiteGraph.vueNodesMode") else "classic"

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.complaints if not any(re.search(one, text) for one in self.expected)]

    def wait_for_silence(self) -> None:
        """Wait until the console has been silent for two seconds."""
        count = -1
        while count != len(self.complaints):
            count = len(self.complaints)
            self.page.wait_for_timeout(2000)

    def open(self, template: str = "start_here", **settings: Any) -> None:
        """Load the page, with a template of ours if one is named, and wait until both are there.

        Without one, the front end shows a newcomer its template browser.
        """
        self.server.client().post("/settings", {**SETTINGS, **settings})
        self.page.goto(self.server.url + (f"?template={template}&source={PACK_FOLDER}" if template else ""))
        self.wait_until_ready()
        if template:
            self.wait("() => app.graph.nodes.length > 0")
            self.settle()

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(READY)
        self.page.evaluate(RECORD)

    def ask(self, expression: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression or function."""
        return self.page.evaluate(expression, argument)

    def wait(self, condition: str, argument: Any = None, seconds: float = PATIENCE) -> None:
        """Until a JavaScript function returns something true."""
        self.page.wait_for_function(condition, arg=argument, timeout=1000 * seconds)

    def settle(self) -> None:
        """Two frames, in which the front end draws what was changed."""
        self.ask("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def start_over(self, *kinds: str) -> None:
        """A graph with a node of each of these classes, far apart, and nothing else; nothing is on the screen."""
        self.complaints.clear()
        self.expected.clear()
        self.ask(
            "() => { const { toast } = app.extensionManager; (toast.removeAll ?? toast.dismissAll).call(toast); }"
        )
        self.load({"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0})
        self.ask(ADD, kinds)
        self.wait(CAPTURED, len(kinds))
        self.settle()

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, as a file that is dropped on the canvas would be."""
        self.ask("(workflow) => app.loadGraphData(workflow)", workflow)
        self.settle()

    def run(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """Click Run and wait for the end: the event that ended the run."""
        before = self.ask("() => seen.ends.length")
        self.click_run()
        self.wait("(before) => seen.ends.length > before", before, seconds)
        self.settle()
        return self.ask("() => seen.ends.at(-1)")

    def exported(self) -> dict[str, dict[str, Any]]:
        """The prompt that the front end would queue; of what newer ones add to a node's `_meta`, the title alone."""
        found = self.ask("async () => (await app.graphToPrompt()).output")
        return {key: {**node, "_meta": {"title": node["_meta"]["title"]}} for key, node in found.items()}

    def click_run(self) -> None:
        self.page.get_by_test_id("queue-button").click()

    def drop(self, files: Sequence[Dropped], kind: str) -> None:
        """Drop files on the only node of a class."""
        self.ask(DROP, [[file.as_json() for file in files], *self.point_on(kind, 15)])

    def point_on(self, kind: str, y: float) -> list[float]:
        """A point of the page, `y` below the title of the only node of a class, once it can be reached."""
        return self.page.wait_for_function(REACHABLE, arg=[kind, y]).json_value()

    def nodes(self, kind: str, what: str) -> list[Any]:
        """`what` (JavaScript, of `node`) of every node of a class."""
        return self.ask(
            f"(kind) => app.graph.nodes.filter(({{ type }}) => type === kind).map((node) => {what})", kind
        )

    def node(self, kind: str, what: str) -> Any:
        (found,) = self.nodes(kind, what)
        return found

    def card(self, kind: str) -> str:
        """The lines of the card on the only node of a class; empty when there is no card."""
        return self.node(
            kind,
            r"""[...(node.widgets?.find(({ name }) => name === 'i2l_card')?.element.querySelectorAll(
                ".i2l-problem, .i2l-lora > .i2l-line, .i2l-lines > div, .i2l-warning") ?? [])
            ].map(({ textContent }) => textContent).join("\n")""",
        )

    def show(self, *kinds: str, around: int = 60) -> None:
        """Move the view so that the nodes of these classes fill it."""
        self._show("({ type }) => kinds.includes(type)", kinds, around)

    def show_all(self) -> None:
        """Move the view so that the whole graph fills it."""
        self._show("() => true", (), 20)

    def _show(self, which: str, kinds: Sequence[str], around: int) -> None:
        self.ask(
            """([kinds, around]) => {
                const boxes = app.graph.nodes.filter(WHICH).map((node) => node.getBounding());
                const left = Math.min(...boxes.map(([x]) => x)) - around;
                const top = Math.min(...boxes.map(([, y]) => y)) - around;
                const right = Math.max(...boxes.map(([x, , w]) => x + w)) + around;
                const bottom = Math.max(...boxes.map(([, y, , h]) => y + h)) + around;
                const { width, height } = app.canvas.canvas.getBoundingClientRect();
                const bar = 60; // at the left edge, over the canvas
                const scale = Math.min((width - bar) / (right - left), height / (bottom - top), 1.6);
                app.canvas.ds.scale = scale;
                const [across, down] = [(width + bar) / scale, height / scale];
                app.canvas.ds.offset = [(across - left - right) / 2, (down - top - bottom) / 2];
                app.canvas.setDirty(true, true);
            }""".replace("WHICH", which),
            [list(kinds), around],
        )
        self.settle()

    def select(self, kind: str) -> None:
        """Click on the title of the only node of a class. Never twice at one place: that would be a double click."""
        self.show(kind)
        x, y = self.point_on(kind, -15)
        self.clicks += 1
        self.page.mouse.click(x + 24 * (self.clicks % 2), y, delay=50)
        self.wait(
            "(kind) => Object.values(app.canvas.selected_nodes).some(({ type }) => type === kind)", kind
        )

    def sentences(self) -> list[str]:
        """What the messages at the corner of the screen say now."""
        return self.page.locator(TOAST).all_inner_texts()

    def said(self, words: str) -> str:
        """Wait for a message at the corner of the screen that holds `words`, and return all of it."""
        found = self.page.locator(TOAST, has_text=words).first
        found.wait_for()
        return found.inner_text()

    @contextmanager
    def light(self) -> Iterator[None]:
        """The light palette of the front end, for a while."""
        palette = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
        self.ask(palette, "light")
        self.settle()
        try:
            yield
        finally:
            self.ask(palette, "dark")

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(300)  # fades
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


def launch(playwright: Playwright) -> Browser:
    """A headless chromium. Raises RuntimeError saying how to get one."""
    path = find_chromium()
    if path is None:
        raise RuntimeError(MISSING)
    return playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))


@contextmanager
def new_page(browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    """A page of somebody who was never here: nothing is stored in the browser."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    try:
        context.set_default_timeout(1000 * PATIENCE)
        yield FrontEnd(context.new_page(), server)
    finally:
        context.close()
