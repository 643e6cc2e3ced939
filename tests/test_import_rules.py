"""Who may import what: design rules, read from the source of every file of the pack.

nodes -> i2l_core, never back; only nodes/ and i2l_core/host/ import the host;
the rest of i2l_core: torch, numpy, pillow, einops, safetensors, transformers, matplotlib and the standard library;
transformers and matplotlib only inside functions; nothing that opens the network, starts programs or unpickles;
commands may bring core and host room together, and accelerate for training.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
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


PACK = [*([ROOT / "__init__.py"] if (ROOT / "__init__.py").exists() else []), *sources("nodes", CORE)]
by_file = pytest.mark.parametrize("path", PACK, ids=name_of)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), name_of(path))


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


def test_there_is_something_to_check():
    assert len(PACK) > 5


@by_file
def test_only_allowed_packages_are_imported(path):
    allowed = set(sys.stdlib_module_names) | CORE_MAY
    if not in_room(path, CORE) or in_room(path, HOST_ROOM):
        allowed |= HOST
    if in_room(path, COMMANDS):
        allowed |= {"accelerate"}
    if in_room(path, "nodes"):
        allowed -= SLOW
    wrong = [f"line {line}: {package}" for package, line in imports(tree_of(path)) if package not in allowed]
    assert not wrong, f"{name_of(path)} imports {wrong}"


@by_file
def test_the_pack_imports_itself_relatively_and_never_upwards(path):
    for package, line in imports(tree_of(path)):
        assert package not in (CORE, "i2l"), (
            f"{name_of(path)}:{line}: the pack's folder has any name: import relatively"
        )
    for target, line in relative_imports(tree_of(path), path):
        assert not Path(target).is_absolute(), f"{name_of(path)}:{line} imports from outside the pack"
        if in_room(path, CORE):
            assert target.split("/")[0] == CORE, f"{name_of(path)}:{line}: the core imports {target}"
        assert target.split("/")[0] not in ("tests", "tools", "bench"), f"{name_of(path)}:{line}: {target}"


@by_file
def test_the_core_outside_its_host_room_does_not_reach_the_host_room(path):
    if not in_room(path, CORE) or in_room(path, HOST_ROOM) or in_room(path, COMMANDS):
        return
    for target, line in relative_imports(tree_of(path), path):
        assert not (target + "/").startswith(HOST_ROOM + "/"), f"{name_of(path)}:{line} imports {target}"


@by_file
def test_slow_packages_are_imported_where_they_are_used(path):
    for node in at_import_time(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = {package for package, _ in imports(node)} & SLOW
            assert not found, f"{name_of(path)}:{node.lineno} imports {found} when ComfyUI starts"


@by_file
def test_no_network_no_programs_no_pickle(path):
    wrong = [
        f"line {line}: {package}"
        for package, line in imports(tree_of(path))
        if package in NETWORK_AND_PROGRAMS | UNPICKLERS
    ]
    assert not wrong, f"{name_of(path)} imports {wrong}"


@by_file
def test_no_print_and_no_unsafe_call(path):
    forbidden = FORBIDDEN_CALLS - ({"print"} if path.name == "__main__.py" else set())
    wrong = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and is_forbidden(node, forbidden)
    ]
    assert not wrong, f"{name_of(path)} calls {wrong}"


@by_file
def test_text_files_have_an_encoding(path):
    """Without one it is UTF-8 here and something else on Windows."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            words = [ast.unparse(word) for word in (*node.args, *(each.value for each in node.keywords))]
            if node.func.attr in ("read_text", "write_text"):
                assert "'utf-8'" in words, f"{name_of(path)}:{node.lineno}"


@by_file
def test_the_syntax_is_that_of_the_oldest_python(path):
    ast.parse(path.read_text("utf-8"), name_of(path), feature_version=(3, 10))


@by_file
def test_no_exception_is_swallowed(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert raises or not broad, f"{name_of(path)}:{node.lineno} catches everything and does not raise"


def test_the_entry_point_imports_only_the_node_list_and_the_host_interface():
    path = ROOT / "__init__.py"
    tree = tree_of(path)
    assert {package for package, _ in imports(tree)} <= {
        "__future__",
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
