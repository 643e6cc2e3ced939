"""Fixtures for every test, and the package name `i2l` under which tests import the pack.

The root of the repository must not be on sys.path: `import nodes` would find the pack's folder and not the
host's module.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from front_end import FrontEnd
    from playwright.sync_api import Browser

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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A real browser. It ends with the module: while it runs, asyncio.run is not possible."""
    from front_end import launch
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except RuntimeError as error:
            pytest.fail(str(error), pytrace=False)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(chromium: Browser, comfy_server: ComfyServer) -> Iterator[Callable[..., FrontEnd]]:
    """Settings of the front end -> a page with these, loaded once in a module."""
    from front_end import new_page

    known: dict[str, FrontEnd] = {}
    with contextlib.ExitStack() as stack:

        def page(**settings: Any) -> FrontEnd:
            key = repr(sorted(settings.items()))
            if key not in known:
                new = stack.enter_context(new_page(chromium, comfy_server))
                new.open(**settings)
                known[key] = new
            return known[key]

        yield page


@pytest.fixture
def front_end(pages: Callable[..., FrontEnd], request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    """A page with an empty graph; its settings are the indirect parameter. The console must be clean at the end."""
    page = pages(**getattr(request, "param", {}))
    page.start_over()
    yield page
    assert page.unexpected == []
