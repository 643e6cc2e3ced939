"""What the pack uses of ComfyUI is listed in one file, and a host that lacks some of it is told so in one sentence."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from i2l.i2l_core.errors import I2LError
from i2l.tools.host import ROOT, find_host

HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview"}


def used() -> dict[str, set[str]]:
    """Module of the host -> what the pack takes from it, read from the source: imports, and chains of attributes."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "i2l_core").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in HOST:
                        names[alias.asname or alias.name.split(".")[0]] = (
                            alias.name if alias.asname else alias.name.split(".")[0]
                        )
            elif (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").split(".")[0] in HOST
            ):
                for alias in node.names:
                    found[str(node.module)].add(alias.name)
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in ast.walk(tree):
            chain = chain_of(node)
            if len(chain) > 1 and chain[0] in names:
                module, name = split([*names[chain[0]].split("."), *chain[1:]])
                if name:
                    found[module].add(name)
    return found


def chain_of(node: ast.AST) -> list[str]:
    """a.b.c as ["a", "b", "c"]; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = chain_of(node.value)
        return [*before, node.attr] if before else []
    return []


def split(parts: list[str]) -> tuple[str, str]:
    """(module, what is inside of it)"""
    for end in range(len(parts), 0, -1):
        path = find_host().path.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:end]), ".".join(parts[end:])
    return ".".join(parts), ""


def test_every_name_of_the_host_is_listed():
    from i2l.i2l_core.host.symbols import NAMES

    found = used()
    assert {module: sorted(names) for module, names in found.items()} == {
        module: sorted(names) for module, names in NAMES.items()
    }, "list what you use of ComfyUI in i2l_core/host/symbols.py"


def test_every_member_is_used_somewhere():
    from i2l.i2l_core.host.symbols import MEMBERS

    sources = [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "i2l_core").rglob("*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources if path.name != "symbols.py")
    for kind, names in MEMBERS.items():
        assert [name for name in names if f".{name}" not in text] == [], kind


def test_this_host_has_all_of_it(host):
    from i2l.i2l_core.host.symbols import check_host

    check_host()


def test_what_a_host_lacks_is_named(host, monkeypatch: pytest.MonkeyPatch):
    import comfy.model_patcher
    import comfy.patcher_extension
    import comfy.samplers

    from i2l.i2l_core.host.symbols import check_host

    monkeypatch.delattr(comfy.samplers, "cond_cat")
    monkeypatch.delattr(comfy.patcher_extension.WrappersMP, "CALC_COND_BATCH")
    monkeypatch.delattr(comfy.model_patcher.ModelPatcher, "get_attachment")
    with pytest.raises(I2LError) as caught:
        check_host()
    for name in (
        "comfy.samplers.cond_cat",
        "comfy.patcher_extension.WrappersMP.CALC_COND_BATCH",
        "comfy.model_patcher.ModelPatcher.get_attachment",
    ):
        assert name in str(caught.value)
    assert "update ComfyUI-i2L" in str(caught.value)
    assert "\n" not in str(caught.value)


LOAD = """
import importlib.util, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
for name in sys.argv[2:]:
    sys.path.insert(0, name)
import comfy.model_management
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
print(getattr(pack, "NODE_CLASS_MAPPINGS", "the nodes of its entry point"))
"""


def loaded(host: Path, version: str) -> subprocess.CompletedProcess[str]:
    """The pack imported as ComfyUI imports it, beside a `comfy` that is nearly empty."""
    (host / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    (host / "comfy").mkdir()
    (host / "comfy" / "model_management.py").write_text("")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LOAD, str(ROOT), str(host)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.mark.parametrize("version", ["0.3.76", "0.18.1", "0.23.9"])
def test_an_older_host_gets_one_sentence_and_no_traceback(tmp_path: Path, version: str):
    found = loaded(tmp_path, version)
    assert found.stdout == "{}\n"  # no nodes, which hides the entry point
    sentence = "is too old for ComfyUI-i2L, which needs 0.24.0 or newer; update ComfyUI"
    assert found.stderr == f"ERROR ComfyUI-i2L: ComfyUI {version} {sentence}\n"


def test_a_newer_host_that_lacks_something_gets_one_sentence(tmp_path: Path):
    found = loaded(tmp_path, "9.0.0")
    assert found.stdout == "{}\n"  # no nodes, which hides the entry point
    assert found.stderr.startswith("ERROR ComfyUI-i2L: ComfyUI 9.0.0 has no comfy.")
    assert found.stderr.count("\n") == 1


def test_the_oldest_version_is_said_alike_everywhere():
    from i2l.i2l_core.host.symbols import OLDEST

    oldest = ".".join(map(str, OLDEST))
    assert f'requires-comfyui = ">={oldest}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"ComfyUI {oldest} or newer" in (ROOT / "README.md").read_text("utf-8")
