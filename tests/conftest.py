"""Fixtures for every test, and the package name `i2l` under which tests import the pack.

The root of the repository must not be on sys.path: `import nodes` would find the pack's folder and not the
host's module.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from i2l.tools.comfy_client import ComfyClient
    from i2l.tools.comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent


def _load_tool_by_path() -> types.ModuleType:
    """tools/host.py by its path, so that it can make the package that every later import goes through."""
    spec = importlib.util.spec_from_file_location("_i2l_host_tool", ROOT / "tools" / "host.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_load_tool_by_path().as_package()
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


# no test is about time: machines are shared
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state. What a test has not imported is not loaded for it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """The real `comfy` package, on the CPU in float32, its folders in a temporary place. Not the server."""
    from i2l.tools.host import HostError, import_host

    try:
        return import_host(tmp_path_factory.mktemp("comfyui"))
    except HostError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """The real ComfyUI with this pack in its custom_nodes, in folders of its own; started once."""
    from tiny_world import link_pack_with_weights

    from i2l.tools.comfy_server import ComfyServer

    base = tmp_path_factory.mktemp("server")
    link_pack_with_weights(base)
    with ComfyServer(base) as running:
        yield running


@pytest.fixture(scope="session")
def server(comfy_server: ComfyServer) -> ComfyClient:
    """A client of that server."""
    return comfy_server.client()


@pytest.fixture(scope="session")
def prompt(server: ComfyClient) -> dict[str, dict[str, Any]]:
    """The workflow that ships, ready to be queued."""
    from server_graphs import start_here

    return start_here(server)
