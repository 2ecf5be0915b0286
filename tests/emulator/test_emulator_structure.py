"""Imports inside the emulator go one way, between its files and between its folders."""

import ast
from pathlib import Path
from typing import Dict, Set

import pytest

EMULATOR = Path(__file__).parents[2] / "emulator"
PUBLIC = set("__init__ enums errors ops optim options poptorch_core profiling structures testing version".split())
PRIVATE = set("_data _device _executor _optimizer _options".split())  # folders
POPTORCHS_OWN = set(
    "_args_parser _impl _logging _poplar_executor _printing _utils".split()
)  # private names of PopTorch


def module_of(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, module, modules):
    """Yield the modules of `modules` that a file imports, wherever in it the import stands."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            named = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        yield from (name for name in named if name in modules and name != module)


def graph_of(root):
    """Return each module of a folder with the modules that it imports."""
    files = {module_of(path, root): path for path in root.rglob("*.py")}
    return {module: set(imports_of(path, module, files)) for module, path in files.items()}


def circle_in(graph):
    """Return the members of one circle in order; None if there is none."""
    done = set()

    def visit(node, path):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return None
        for target in sorted(graph[node]):
            found = visit(target, [*path, node])
            if found:
                return found
        done.add(node)
        return None

    return next((found for found in (visit(node, []) for node in sorted(graph)) if found), None)


def room_of(module):
    """poptorch._device.hardware -> _device; the package itself is __init__."""
    parts = module.split(".")
    return "__init__" if len(parts) == 1 else parts[1]


def rooms():
    graph = {name: found for name, found in graph_of(EMULATOR).items() if name.split(".")[0] == "poptorch"}
    by_room: Dict[str, Set[str]] = {room_of(name): set() for name in graph}
    for name, found in graph.items():
        by_room[room_of(name)] |= {room_of(target) for target in found if target in graph} - {room_of(name)}
    return by_room


def test_no_files_import_each_other_in_a_circle():
    assert circle_in(graph_of(EMULATOR)) is None


def test_no_folders_import_each_other_in_a_circle():
    assert circle_in(rooms()) is None


def test_the_package_has_poptorchs_own_modules_and_five_private_folders():
    assert set(rooms()) == PUBLIC | PRIVATE | POPTORCHS_OWN


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"a": "import b", "b": "import c", "c": ""}, None),
        ({"a": "import b", "b": "def f():\n    from c import x", "c": "import a"}, ["a", "b", "c"]),
        ({"p/__init__": "from .q import x", "p/q": "from . import r", "p/r": "from .q import y"}, ["p.q", "p.r"]),
    ],
)
def test_a_circle_is_found_wherever_its_imports_stand(tmp_path, files, circle):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    assert circle_in(graph_of(tmp_path)) == circle
