"""The real server takes the pack in: every node is there, described, and start-up stays quick and quiet."""

from __future__ import annotations

from typing import Any

import pytest

from i2l.tools.comfy_client import ComfyClient
from i2l.tools.comfy_server import ComfyServer
from i2l.tools.host import PACK_FOLDER
from i2l.tools.startup_times import import_times

pytestmark = pytest.mark.server

NODES = (
    "LoadI2LPredictor",
    "ImagesToLoRA",
    "ApplyPredictedLoRA",
    "FuseLoRAs",
    "LoRAPreview",
    "SavePredictedLoRA",
    "LoadI2LDemo",
    "LoadInfinity",
    "InfinityStyle",
    "InfinitySampler",
)


def inputs_of(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Input name -> its options; the inputs inside an input that grows are included."""
    found: dict[str, dict[str, Any]] = {}
    for group in ("required", "optional"):
        for name, entry in info["input"].get(group, {}).items():
            options = entry[1] if len(entry) > 1 else {}
            found[name] = options
            inner = options.get("template", {}).get("input", {})
            found.update(inputs_of({"input": inner}) if inner else {})
    return found


@pytest.mark.parametrize("node", NODES)
def test_node_is_known_and_described(server: ComfyClient, node: str):
    info = server.object_info(node).get(node)
    assert info is not None, f"the server does not know {node}"
    assert info["display_name"]
    assert info["description"], f"{node} has no description"
    assert info["category"]
    assert PACK_FOLDER in info["python_module"]


@pytest.mark.parametrize("node", NODES)
def test_every_input_has_a_tooltip(server: ComfyClient, node: str):
    info = server.object_info(node)[node]
    without = [name for name, options in inputs_of(info).items() if not options.get("tooltip")]
    # an input that grows shows the tooltip of the inputs inside it
    without = [name for name in without if "template" not in inputs_of(info)[name]]
    assert not without


@pytest.mark.parametrize("node", NODES)
def test_no_output_shares_the_name_of_another(server: ComfyClient, node: str):
    info = server.object_info(node)[node]
    assert len(info["output_name"]) == len(set(info["output_name"])) == len(info["output"])


def test_start_up_log_is_quiet_about_the_pack(comfy_server: ComfyServer):
    before_running = comfy_server.log.partition("To see the GUI go to")[0]
    assert "Traceback" not in before_running, comfy_server.log_tail(80)
    warnings = [line for line in before_running.splitlines() if "[WARNING]" in line or "[ERROR]" in line]
    assert not [line for line in warnings if PACK_FOLDER in line]


def test_the_pack_is_imported_quickly(comfy_server: ComfyServer, record_property):
    """The bound only catches an accident (a heavy import); the figure is in bench/startup.py."""
    times = {found.pack: found for found in import_times(comfy_server.log)}
    assert times[PACK_FOLDER].loaded
    record_property("pack_seconds", times[PACK_FOLDER].seconds)
    assert times[PACK_FOLDER].seconds < 2.0


def test_front_end_files_are_served(server: ComfyClient):
    """Help pages and scripts, if there are any, come from the pack's own web folder."""
    extensions = [path for path in server.get("/extensions") if f"/{PACK_FOLDER}/" in path]
    for path in extensions:
        assert server.get_bytes(path)
