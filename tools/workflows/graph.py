"""A workflow as the front end saves it, put together node by node. Its groups are read from the top down, column after
column.

Sockets, widgets and their order come from the schemas of a server (its /object_info), so a workflow is wrong only
where its author is: an input that a node does not have, or that lacks its value, is an error when it is made.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..graph_to_api import AUTOGROW, Input, is_controlled, schema_inputs
from .columns import GAP, Place, extent, placed

PACK = {"cnr_id": "i2l", "ver": "0.1.0"}
CORE = {"cnr_id": "comfy-core", "ver": "0.30.0"}
FRONT_END = "1.47.12"
OPTIONAL = 7  # LiteGraph's shape of the socket of an optional input

BLUE, GREEN, AMBER, PURPLE = "#3f789e", "#8A8", "#b58b2a", "#a1309b"  # groups: in, LoRA, text, out
NOTE = ("#432", "#653")
NOTE_WIDTHS = (440, 560)
NOTE_LETTER = 6.1  # width of a letter in a note
POSITIVE = ("#232", "#353")
NEGATIVE = ("#322", "#533")

TITLE = 30  # pixels above a node's position
BORDER = 20  # of a group, beside and below its nodes
PICTURE = 314  # height of a node that loads a picture
FIRST = 40  # where the first node of a column is
BELOW = 50  # from the end of a node to the position of the next, its title included
HEAD = 60  # of a group, above the first position
CANVAS = (1700, 820)  # pixels of the screen that a workflow should fit into
SIDEBAR = 80  # pixels of the screen left of it and above


class WorkflowError(ValueError):
    """The workflow asks for something that the schemas do not have."""


@dataclass(frozen=True)
class Socket:
    """An output of a node; `value` is what it is known to carry, shown where a widget is linked to it."""

    node: int
    slot: int
    type: str
    value: Any = None


@dataclass
class Node:
    """A node of the graph; `node["lora"]` is its output of that name."""

    id: int
    kind: str
    outputs: Sequence[tuple[str, str]]  # name, type
    saved: dict[str, Any]  # as in the file, its position counted from its group's
    bottom: float  # of the place that it takes

    def __getitem__(self, name: str) -> Socket:
        for slot, (output, type) in enumerate(self.outputs):
            if output.lower() == name.lower():
                value = self.saved["widgets_values"][0] if self.kind.startswith("Primitive") else None
                return Socket(self.id, slot, type, value)
        raise WorkflowError(
            f"{self.kind} has no output {name!r}: it has {[name for name, _ in self.outputs]}"
        )


@dataclass(frozen=True)
class Look:
    """How a node looks, beside what its schema says.

    `y`: its top, if not below the node before it. `height`: if not that of its sockets and widgets. `room`: pixels
    left free below, for the card that the node shows after a run. `control`: what happens to its seed after a run.
    """

    title: str = ""
    column: int = 0
    y: float | None = None
    height: float = 0
    room: float = 0
    colors: tuple[str, str] | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    control: str = "fixed"


PLAIN = Look()


@dataclass
class _Group:
    title: str
    color: str
    width: float
    nodes: list[Node] = field(default_factory=list)

    @property
    def height(self) -> float:
        return HEAD + max(node.bottom for node in self.nodes) + BORDER


@dataclass
class _Column:
    left: float
    width: float
    top: float = FIRST  # where its next node goes

    @property
    def right(self) -> float:
        return self.left + self.width


class Workflow:
    """One workflow: groups in the order in which they are read, in each columns of nodes from the top down.

    `name`: of the file, without .json; its id is made from it.
    """

    def __init__(self, name: str, object_info: Mapping[str, Any]) -> None:
        self.name = name
        self._schemas = object_info
        self._nodes: list[Node] = []
        self._links: list[list[Any]] = []
        self._groups: list[_Group] = []
        self._columns: list[_Column] = []

    def note(self, text: str, title: str) -> None:
        """A note in Markdown, above everything on the left; the first node of a workflow."""
        self._place("MarkdownNote", [], [], [text.strip()], title, NOTE, (0.0, 0.0), (0.0, 0.0), {})

    def group(self, title: str, color: str, *widths: float) -> None:
        """Start a group with columns of these widths."""
        self._columns = []
        for width in widths:
            start = self._columns[-1].right + GAP if self._columns else BORDER
            self._columns.append(_Column(start, width))
        self._groups.append(_Group(title, color, self._columns[-1].right + BORDER))

    def add(self, kind: str, look: Look = PLAIN, **inputs: Any) -> Node:
        """Add a node below the last one of a column of the group.

        `inputs`: Sockets of other nodes and values of widgets, by the names of the schema; a list of Sockets for an
        input that grows. Widgets not named get the schema's default.
        """
        schema = self._schemas.get(kind)
        if schema is None:
            raise WorkflowError(f"the server has no node {kind}")
        id = len(self._nodes) + 1
        values = _widget_values(schema, inputs, look.control)
        sockets = [self._socket(id, place, *one) for place, one in enumerate(_sockets(kind, schema, inputs))]
        outputs = list(zip(schema["output_name"], schema["output"], strict=True))
        rows = max(sum("widget" not in socket for socket in sockets), len(outputs))
        rows += sum(
            one.kind == AUTOGROW for one in schema_inputs(schema, inputs.get)
        )  # as the front end counts
        height = look.height or rows * 20 + (len(values) * 24 + 14 if values else 6)
        at = self._columns[look.column]
        about = PACK if str(schema.get("python_module", "")).startswith("custom_nodes.") else CORE
        node = self._place(
            kind,
            sockets,
            outputs,
            values,
            look.title,
            look.colors,
            (at.left, at.top if look.y is None else look.y),
            (at.width, height),
            {"Node name for S&R": kind, **about, **look.properties},
        )
        self._groups[-1].nodes.append(node)
        node.bottom += look.room
        at.top = node.bottom + BELOW
        return node

    def picture(self, file: str, look: Look = PLAIN, kind: str = "LoadImage", **inputs: Any) -> Node:
        """A node that loads a picture that ships in workflows/references."""
        about = {"i2l_picture": f"references/{file}"}
        look = replace(look, height=look.height or PICTURE, properties=about)
        return self.add(kind, look, image=file, **inputs)

    def _socket(self, id: int, place: int, saved: dict[str, Any], source: Socket | None) -> dict[str, Any]:
        """The input as saved, with its link."""
        saved["link"] = None
        if source is not None:
            if "*" not in (source.type, saved["type"]) and source.type not in saved["type"].split(","):
                raise WorkflowError(f"node {id}: {saved['name']} takes {saved['type']}, not {source.type}")
            number = saved["link"] = len(self._links) + 1
            self._links.append([number, source.node, source.slot, id, place, source.type])
        return saved

    def _place(
        self,
        kind: str,
        inputs: list[dict[str, Any]],
        outputs: Sequence[tuple[str, str]],
        values: Sequence[Any],
        title: str,
        colors: tuple[str, str] | None,
        position: tuple[float, float],
        size: tuple[float, float],
        properties: dict[str, Any],
    ) -> Node:
        saved: dict[str, Any] = {
            "id": len(self._nodes) + 1,
            "type": kind,
            "pos": [_whole(x) for x in position],
            "size": [_whole(x) for x in size],
            "flags": {},
            "order": len(self._nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": name, "type": type, "links": None} for name, type in outputs],
            "properties": properties,
        }
        saved |= {"title": title} if title else {}
        saved |= {"widgets_values": list(values)} if values else {}
        saved |= {"color": colors[0], "bgcolor": colors[1]} if colors else {}
        node = Node(saved["id"], kind, outputs, saved, position[1] + size[1])
        self._nodes.append(node)
        return node

    def as_json(self) -> dict[str, Any]:
        for number, source, slot, *_ in self._links:
            output = self._nodes[source - 1].saved["outputs"][slot]
            output["links"] = [*(output["links"] or []), number]
        note, places, size = self._arranged()
        offsets = {
            node.id: (place.left, place.top + HEAD)
            for group, place in zip(self._groups, places, strict=True)
            for node in group.nodes
        }
        view = _view(size)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-i2l/{self.name}")),
            "revision": 0,
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": [_moved(node.saved | note.get(node.id, {}), offsets) for node in self._nodes],
            "links": self._links,
            "groups": [
                _group(number, group, place)
                for number, (group, place) in enumerate(zip(self._groups, places, strict=True), 1)
            ],
            "config": {},
            "extra": {"ds": view, "i2l_view": view, "frontendVersion": FRONT_END},
            "version": 0.4,
        }

    def _arranged(self) -> tuple[dict[int, dict[str, Any]], list[Place], tuple[float, float]]:
        """(what the note gets, places of the groups, size of all), with the width of the note that suits best."""
        boxes = [(group.width, group.height) for group in self._groups]
        notes = [node for node in self._nodes if node.kind == "MarkdownNote"]
        if not notes:
            places, size = placed(boxes)
            return {}, places, size
        (note,) = notes
        found = []
        for width in NOTE_WIDTHS:
            height = 30 + sum(
                _line_height(line, width) for line in note.saved["widgets_values"][0].splitlines()
            )
            places, size = placed([(width, TITLE + height), *boxes])
            found.append((extent(size), width, height, places, size))
        _, width, height, places, size = min(found, key=lambda one: one[0])
        return {note.id: {"pos": [0, TITLE], "size": [width, height]}}, places[1:], size


def _view(size: tuple[float, float]) -> dict[str, Any]:
    """Of all, with a border, on a canvas of usual size. The front end shows what it holds when the page is opened
    again; web/view.js knows by it that nobody has moved the workflow yet."""
    scale = math.floor(min(CANVAS[0] / size[0], CANVAS[1] / size[1], 1.0) * 100) / 100
    return {"scale": scale, "offset": [SIDEBAR / scale, SIDEBAR / scale]}


def _moved(saved: dict[str, Any], offsets: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    left, top = offsets.get(saved["id"], (0, 0))
    x, y = saved["pos"]
    return saved | {"pos": [_whole(x + left), _whole(y + top)]}


def _group(number: int, group: _Group, place: Place) -> dict[str, Any]:
    return {
        "id": number,
        "title": group.title,
        "bounding": [_whole(x) for x in (place.left, place.top, place.width, group.height)],
        "color": group.color,
        "font_size": 24,
        "flags": {},
    }


def _line_height(line: str, width: float) -> int:
    """Pixels that a line of Markdown takes, or a little more; addresses of links are not seen."""
    line = re.sub(r"\]\([^)]*\)", "]", line)
    if line.startswith("#"):
        return 36
    return 14 * math.ceil(len(line) * NOTE_LETTER / width) if line else 11


def _whole(x: float) -> float:
    return int(x) if x == int(x) else x


def _sockets(
    kind: str, schema: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Socket | None]]:
    """(input as saved, what it is linked to), in the order of the front end: first what has no widget."""
    every = list(schema_inputs(schema, given.get))
    if unknown := given.keys() - {one.name for one in every}:
        known = ", ".join(one.name for one in every)
        raise WorkflowError(f"{kind} has no input {', '.join(sorted(unknown))}: it has {known}")
    brought = [
        one for one in every if one.is_widget or "." in one.name
    ]  # "." by an option of a dynamic combo
    for one in [one for one in every if one not in brought] + brought:
        source = given.get(one.name)
        saved: dict[str, Any] = {"name": one.name, "type": one.kind}
        if one.kind == AUTOGROW:
            yield from _growing(one, given[one.name])
        elif one.is_widget:
            yield saved | {"widget": {"name": one.name}}, source if isinstance(source, Socket) else None
        elif source is None and not one.optional:
            raise WorkflowError(f"{kind} needs the input {one.name!r}")
        else:
            saved |= {"label": one.name.rpartition(".")[2]} if "." in one.name else {}
            yield saved | ({"shape": OPTIONAL} if one.optional else {}), source


def _growing(one: Input, sources: Sequence[Socket]) -> Iterator[tuple[dict[str, Any], Socket | None]]:
    """A socket for each source, and an empty one for the next."""
    template = one.options["template"]
    (entry,) = {**template["input"].get("required", {}), **template["input"].get("optional", {})}.values()
    for number, source in enumerate([*sources, None]):
        label = f"{template['prefix']}{number}"
        yield {"name": f"{one.name}.{label}", "type": entry[0], "label": label, "shape": OPTIONAL}, source


def _widget_values(schema: Mapping[str, Any], given: Mapping[str, Any], control: str) -> list[Any]:
    """As the front end counts them: a seed is followed by its control, the upload button comes last."""
    values: list[Any] = []
    uploads = False
    for one in schema_inputs(schema, given.get):
        if not one.is_widget:
            continue
        value = given.get(one.name)
        value = value.value if isinstance(value, Socket) else value
        values.append(_default(one) if value is None else value)
        if is_controlled(one.name, one.options):
            values.append(control)
        uploads |= bool(one.options.get("image_upload"))
    return [*values, "image"] if uploads else values


def _default(one: Input) -> Any:
    if "default" in one.options:
        return one.options["default"]
    if one.kind == "STRING":
        return ""
    raise WorkflowError(f"the input {one.name!r} has no default: give it a value")
