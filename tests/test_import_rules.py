"""Who may import what: design rules, read from the source of every file of the pack.

nodes -> i2l_core, never back; only nodes/ and i2l_core/host/ import the host;
the rest of i2l_core: torch, numpy, pillow, einops, safetensors, transformers, matplotlib and the standard library;
transformers and matplotlib only inside functions; nothing that opens the network, starts programs or unpickles;
commands may bring core and host room together, and accelerate for training.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = "i2l_core"
HOST_ROOM = "i2l_core/host"
COMMANDS = "i2l_core/commands"
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}
CORE_MAY = {"torch", "numpy", "PIL", "einops", "safetensors", "transformers", "matplotlib"}
NETWORK_AND_PROGRAMS = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "requests",
    "socket",
    "subprocess",
}
NETWORK_AND_PROGRAMS |= {"urllib", "urllib3"}
UNPICKLERS = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
FORBIDDEN_CALLS = {"print", "eval", "exec", "torch.load", "torch.save", "os.system", "os.popen"}
SLOW = {"transformers", "matplotlib", "accelerate"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Every file of the pack, parsed once with the grammar of the oldest Python."""
    paths = [ROOT / "__init__.py", *sources("nodes", CORE)]
    assert len(paths) > 100
    return {
        path: ast.parse(path.read_text("utf-8"), name_of(path), feature_version=(3, 10)) for path in paths
    }


def none(offenders: Iterable[str], rule: str) -> None:
    offenders = list(offenders)
    assert not offenders, f"{rule}:\n  " + "\n  ".join(offenders)


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(top-level package, line) of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


def relative_imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """(path in the repository, line) of every relative import, e.g. ("i2l_core/lora", 3)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        folder = path.parent
        for _ in range(node.level - 1):
            folder = folder.parent
        base = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
        for alias in node.names:
            target = base / alias.name
            is_module = target.is_dir() or target.with_suffix(".py").exists()
            yield name_of(target if is_module else base), node.lineno


def at_import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the file is imported: not the bodies of functions, not `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) in (
                "TYPE_CHECKING",
                "typing.TYPE_CHECKING",
            ):
                waiting.extend(child.orelse)
                continue
            waiting.append(child)


def is_forbidden(node: ast.Call, forbidden: set[str]) -> bool:
    unpickles = any(
        word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords
    )
    return unpickles or ast.unparse(node.func) in forbidden


def in_room(path: Path, room: str) -> bool:
    return name_of(path).startswith(room + "/")


def test_only_allowed_packages_are_imported():
    def allowed(path: Path) -> set[str]:
        packages = set(sys.stdlib_module_names) | CORE_MAY
        if not in_room(path, CORE) or in_room(path, HOST_ROOM):
            packages |= HOST
        if in_room(path, COMMANDS):
            packages |= {"accelerate"}
        return packages - SLOW if in_room(path, "nodes") else packages

    none(
        (
            f"{name_of(path)}:{line}: {package}"
            for path, tree in trees().items()
            for package, line in imports(tree)
            if package not in allowed(path)
        ),
        "imports that this room may not have",
    )


def test_the_pack_imports_itself_relatively_and_never_upwards():
    absolute = (
        f"{name_of(path)}:{line}: {package}: the pack's folder has any name: import relatively"
        for path, tree in trees().items()
        for package, line in imports(tree)
        if package in (CORE, "i2l")
    )
    upwards = (
        f"{name_of(path)}:{line}: {target}"
        for path, tree in trees().items()
        for target, line in relative_imports(tree, path)
        if Path(target).is_absolute()
        or target.split("/")[0] in ("tests", "tools", "bench")
        or (in_room(path, CORE) and target.split("/")[0] != CORE)
    )
    none([*absolute, *upwards], "imports from outside the pack, or from nodes in the core")


def test_the_core_outside_its_host_room_does_not_reach_the_host_room():
    none(
        (
            f"{name_of(path)}:{line}: {target}"
            for path, tree in trees().items()
            if in_room(path, CORE) and not in_room(path, HOST_ROOM) and not in_room(path, COMMANDS)
            for target, line in relative_imports(tree, path)
            if (target + "/").startswith(HOST_ROOM + "/")
        ),
        "only commands bring core and host together",
    )


def test_slow_packages_are_imported_where_they_are_used():
    none(
        (
            f"{name_of(path)}:{line}: {package}"
            for path, tree in trees().items()
            for node in at_import_time(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for package, line in imports(node)
            if package in SLOW
        ),
        "imported when ComfyUI starts",
    )


def test_no_network_no_programs_no_pickle():
    none(
        (
            f"{name_of(path)}:{line}: {package}"
            for path, tree in trees().items()
            for package, line in imports(tree)
            if package in NETWORK_AND_PROGRAMS | UNPICKLERS
        ),
        "packages that open the network, start programs or unpickle",
    )


def test_no_print_and_no_unsafe_call():
    none(
        (
            f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"
            for path, tree in trees().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and is_forbidden(node, FORBIDDEN_CALLS - ({"print"} if path.name == "__main__.py" else set()))
        ),
        "forbidden calls",
    )


def test_text_files_have_an_encoding():
    """Without one it is UTF-8 here and something else on Windows."""
    none(
        (
            f"{name_of(path)}:{node.lineno}"
            for path, tree in trees().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("read_text", "write_text")
            and "'utf-8'"
            not in [ast.unparse(each) for each in (*node.args, *(k.value for k in node.keywords))]
        ),
        "text files without encoding",
    )


def test_no_exception_is_swallowed():
    none(
        (
            f"{name_of(path)}:{node.lineno}"
            for path, tree in trees().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler)
            and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
            and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        ),
        "handlers that catch everything and do not raise",
    )


def test_the_entry_point_imports_only_the_node_list_and_the_host_interface():
    path = ROOT / "__init__.py"
    tree = trees()[path]
    assert {package for package, _ in imports(tree)} <= {
        "__future__",
        "logging",
        "typing",
        "typing_extensions",
        "comfy_api",
    }
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert "comfy_entrypoint" in names
    assigned = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    assert not [text for text in assigned if text.startswith("NODE_CLASS_MAPPINGS")], (
        "it would hide the entry point"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b, c", [("a", 1), ("c", 1)]),
        ("from x.y import z", [("x", 1)]),
        ("def f():\n    import q", [("q", 2)]),
        ("from . import z", []),
    ],
)
def test_imports_are_found(source, expected):
    assert list(imports(ast.parse(source))) == expected


def test_import_time_leaves_functions_and_type_checking_out():
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "def f():\n    import d\nclass C:\n    import e\n"
    )
    nodes = [node for node in at_import_time(ast.parse(source)) if isinstance(node, ast.Import)]
    assert {alias.name for node in nodes for alias in node.names} == {"a", "c", "e"}
