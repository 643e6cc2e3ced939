"""A workflow as the front end saves it (nodes, links, widget values) -> the prompt that the server runs.

The front end does this in the browser; here it is done from the file and the server's own /object_info, so
that a shipped workflow can be run, and tested, without a browser. Subgraphs are not supported, and refused.

The order of `widgets_values` is not written in the file. It is the order of the widget inputs in the
node's schema, where
    a seed with `control_after_generate` takes one value more (what happens to it after a run),
    an upload button takes one value more, at the end (left out by newer front ends, and harmless),
    an input converted to a socket keeps its place,
    a dynamic combo is followed by the inputs of the option that it selects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MUTED = 2
BYPASSED = 4
NOTES = {"Note", "MarkdownNote"}
REROUTE = "Reroute"
PRIMITIVE = "PrimitiveNode"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AUTOGROW = "COMFY_AUTOGROW_V3"
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
SEEDS = {"seed", "noise_seed"}
CONTROLS = ("fixed", "increment", "decrement", "randomize")


class GraphError(ValueError):
    """The workflow cannot be converted; the message names the node."""


@dataclass(frozen=True)
class Link:
    """From output `slot` of node `source` (both as the file counts them), carrying values of `type`."""

    source: str
    slot: int
    type: str


@dataclass(frozen=True)
class Graph:
    """Nodes by id and links by id."""

    nodes: Mapping[str, Mapping[str, Any]]
    links: Mapping[int, Link]
    _object_info: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        for node in self.nodes.values():
            if _is_live(node) and node["type"] not in self._object_info:
                raise GraphError(f"{_name(node)}: the server has no node class {node['type']!r}.")

    def schema(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._object_info[node["type"]]


def graph_to_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """workflow: the JSON of a saved workflow. object_info: what the server answers to /object_info.

    Returns node id -> {"class_type", "inputs", "_meta": {"title"}}. Raises GraphError.
    """
    graph = _read(workflow, object_info)
    return {
        key: {
            "class_type": node["type"],
            "inputs": _inputs(graph, node),
            "_meta": {"title": node.get("title") or graph.schema(node).get("display_name") or node["type"]},
        }
        for key, node in graph.nodes.items()
        if _is_live(node)
    }


def _read(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> Graph:
    if not isinstance(workflow.get("nodes"), list):
        raise GraphError(
            "Expected a workflow saved by the front end, with a list `nodes`; is it in API form already?"
        )
    if (workflow.get("definitions") or {}).get("subgraphs"):
        raise GraphError(
            "The workflow has subgraphs, which are not supported here: unpack them and save it again."
        )
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    links: dict[int, Link] = {}
    for link in workflow.get("links", []):
        if isinstance(link, Mapping):  # schema version 1
            number, source, slot, kind = link["id"], link["origin_id"], link["origin_slot"], link["type"]
        else:  # version 0.4: [id, source, source slot, target, target slot, type]
            number, source, slot, kind = link[0], link[1], link[2], link[5]
        links[int(number)] = Link(str(source), int(slot), str(kind))
    return Graph(nodes, links, object_info)


def _is_live(node: Mapping[str, Any]) -> bool:
    """Whether the server gets this node: it is no note, not made for the front end only, not switched off."""
    return node["type"] not in NOTES | {REROUTE, PRIMITIVE} and node.get("mode", 0) not in (MUTED, BYPASSED)


def _name(node: Mapping[str, Any]) -> str:
    return f"node {node['id']} ({node.get('title') or node['type']})"


def _inputs(graph: Graph, node: Mapping[str, Any]) -> dict[str, Any]:
    """Widget values, then the links over them: a widget turned into a socket takes what the link brings."""
    values = _widget_values(graph, node)
    for socket in node.get("inputs") or []:
        if socket.get("link") is None:
            continue
        found = _source(graph, int(socket["link"]))
        if isinstance(found, Link):
            values[socket["name"]] = [found.source, found.slot]
        elif found is not None:
            values[socket["name"]] = found.value
    return values


@dataclass(frozen=True)
class _Constant:
    """What a primitive node of the front end holds."""

    value: Any


def _source(graph: Graph, number: int) -> Link | _Constant | None:
    """Where a link really comes from, through reroutes and bypassed nodes. None: from a muted node."""
    seen: set[int] = set()
    while number not in seen:
        seen.add(number)
        link = graph.links.get(number)
        if link is None or link.source not in graph.nodes:
            raise GraphError(f"Link {number} comes from nowhere: the workflow file is damaged.")
        node = graph.nodes[link.source]
        if node["type"] == PRIMITIVE:
            return _Constant(node["widgets_values"][0])
        if node["type"] == REROUTE:
            following = (node.get("inputs") or [{}])[0].get("link")
        elif node.get("mode", 0) == BYPASSED:
            following = _bypass(node, link)
        elif node.get("mode", 0) == MUTED:
            return None
        else:
            return link
        if following is None:
            return None
        number = int(following)
    raise GraphError(f"Link {number} leads back to itself.")


def _bypass(node: Mapping[str, Any], link: Link) -> int | None:
    """The link that replaces a bypassed node's output: the one in its place if it fits, else the first."""
    sockets = node.get("inputs") or []
    same_place = sockets[link.slot : link.slot + 1]
    for socket in [*same_place, *sockets]:
        if socket.get("type") == link.type and socket.get("link") is not None:
            return socket["link"]
    return None


def _widget_values(graph: Graph, node: Mapping[str, Any]) -> dict[str, Any]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, Mapping):
        widgets = [one for one in schema_inputs(graph.schema(node), saved.get) if one.is_widget]
        return {one.name: saved[one.name] for one in widgets if one.name in saved}
    reader = _Reader(node, saved)
    for one in schema_inputs(graph.schema(node), reader.values.get):
        if one.is_widget:
            reader.take(one.name, one.options)
    return reader.values


class _Reader:
    """Walks through a list of widget values in step with the schema."""

    def __init__(self, node: Mapping[str, Any], saved: Sequence[Any]) -> None:
        self._node = node
        self._saved = saved
        self._next = 0
        self.values: dict[str, Any] = {}

    def take(self, name: str, options: Mapping[str, Any]) -> None:
        """The next value is that of input `name`. A value missing at the end gets the schema's default."""
        if self._next < len(self._saved):
            self.values[name] = self._saved[self._next]
            following = self._saved[self._next + 1 : self._next + 2]
            controlled = is_controlled(name, options) and following and following[0] in CONTROLS
            self._next += 2 if controlled else 1
        elif "default" in options:
            self.values[name] = options["default"]
        else:
            raise GraphError(f"{_name(self._node)}: the file has no value for the input {name!r}.")


def is_controlled(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the front end gives the input a second widget: what happens to its value after a run."""
    return bool(options.get("control_after_generate")) or name in SEEDS


@dataclass(frozen=True)
class Input:
    """One input of a node; the inputs that an option of a dynamic combo brings have its name before theirs."""

    name: str
    kind: str
    options: Mapping[str, Any]
    optional: bool

    @property
    def is_widget(self) -> bool:
        return self.kind in WIDGET_TYPES | {DYNAMIC_COMBO} and not self.options.get("forceInput")


def schema_inputs(schema: Mapping[str, Any], value_of: Callable[[str], Any]) -> Iterator[Input]:
    """Each input in order. value_of(name) gives the value of a dynamic combo just yielded."""
    yield from _inputs_of(schema["input"], schema.get("input_order"), "", value_of)


def _inputs_of(
    inputs: Mapping[str, Any],
    order: Mapping[str, Sequence[str]] | None,
    prefix: str,
    value_of: Callable[[str], Any],
) -> Iterator[Input]:
    for group in ("required", "optional"):
        entries = inputs.get(group) or {}
        for short in (order or {}).get(group) or entries:
            kind, options = _kind_and_options(entries[short])
            name = prefix + short
            yield Input(name, kind, options, optional=group == "optional")
            if kind == DYNAMIC_COMBO:
                chosen = value_of(name)
                for option in options.get("options", []):
                    if option["key"] == chosen:
                        yield from _inputs_of(option["inputs"], None, f"{name}.", value_of)


def _kind_and_options(entry: Sequence[Any]) -> tuple[str, Mapping[str, Any]]:
    """A list of choices is the older spelling of COMBO."""
    kind = "COMBO" if isinstance(entry[0], list) else str(entry[0])
    return kind, entry[1] if len(entry) > 1 else {}
