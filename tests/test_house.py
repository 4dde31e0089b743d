"""The rooms of the code: imports go down, never up, and never in a circle."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import fusion
import ssm
from training.settings.flag import flags as all_flags
from training.settings.flag import spelling
from training.settings.settings import Settings

ROOT = Path(__file__).parents[1]
# From the ground up: each imports only what comes before it, and what lies in the same room.
ROOMS = (
    "training.words",
    "native",
    "ssm",
    "fusion",
    "models_mamba",
    "training.settings",
    "training.runtime",
    "training.data",
    "datasets",
    "training.step",
    "engine",
    "training.state",
    "training.records",
    "training.build",
    "runner",
    "preflight",
    "main",
    "predict",
    "visualize",
    "scripts",
)
ON_THEIR_OWN = {"ssm": {"native"}, "fusion": {"native"}}  # what these may import of the project, and nothing else


def modules():
    """Every module of the project by its name, without tests."""
    folders = ("native", "ssm", "fusion", "training", "scripts")
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(name, file, known):
    """The modules of the project that a module imports when it is imported; what a function imports is not counted."""
    tree, found = ast.parse(file.read_text()), set()
    inner = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {module for module in found if module in known} - {name}


def room_of(module):
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), None)


GRAPH = {name: imports(name, file, modules()) for name, file in modules().items()}


def test_every_module_is_in_a_room():
    assert [name for name in GRAPH if room_of(name) is None] == ["training"]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room):
    mine = [name for name in GRAPH if room_of(name) == room]
    assert mine
    for name in mine:
        used = {room_of(module) for module in GRAPH[name]} - {room, None}
        above = {other for other in used if ROOMS.index(other) > ROOMS.index(room)}
        assert not above, f"{name} imports {above}"
        assert used <= ON_THEIR_OWN.get(room, used), f"{name} imports {used}"


def test_no_imports_go_in_a_circle():
    # A package's __init__ imports its modules, which others import by their own names.
    packages = {name for name, file in modules().items() if file.name == "__init__.py"}
    TopologicalSorter({name: used - packages for name, used in GRAPH.items() if name not in packages}).prepare()


def test_the_library_names_its_parameters_and_no_flags():
    flags = {spelling(field) for field, _ in all_flags(Settings)}
    for name, file in modules().items():
        if room_of(name) in ("ssm", "fusion", "models_mamba") and not name.endswith("__main__"):
            words = set(re.findall(r"--\w[\w-]*", file.read_text()))
            assert not words & flags, f"{name} speaks of {words & flags}"


@pytest.mark.parametrize("package", [fusion, ssm])
def test_every_public_name_is_found_though_some_are_imported_late(package):
    for name in package.__all__:
        assert f"{package.__name__}.{name}" not in modules(), "once imported, the module would hide the name"
        assert not isinstance(getattr(package, name), ModuleType)
    assert dir(package) == sorted(package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_no_room_holds_more_than_a_fifth_of_the_code():
    lines = dict.fromkeys(ROOMS, 0)
    for name, file in modules().items():
        if room_of(name):
            lines[room_of(name)] += len(file.read_text().splitlines())
    for room, count in lines.items():
        if room.startswith("training."):
            assert count <= 0.2 * sum(lines.values()), f"{room}: {count} of {sum(lines.values())} lines"
    print(lines)
