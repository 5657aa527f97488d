"""The house keeps its shape: arrows point one way, no circles, few rooms, and each folder says what lives in it."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest
from support import ROOT

PACKAGES = ("fedsim", "clients", "server", "partitions")
MOST_ROOMS = 20
RAY = ("fedsim/executors/", "clients/actor.py", "server/aggregator.py")
"""Where ``ray`` may be imported."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def at_import(statements: list[ast.stmt]) -> Iterator[str]:
    """Yield what is imported as a module is imported: not in functions, not for type checkers alone."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With):
            yield from at_import(node.body)


def anywhere(tree: ast.Module) -> set[str]:
    """Return the top-level packages that a module imports in any place."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_no_import_circle():
    graph = {name: {d for d in at_import(tree.body) if d in MODULES and d != name} for name, tree in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


@pytest.mark.parametrize("package", ["clients", "server", "partitions", "fedsim.core", "fedsim.methods"])
def test_arrows_point_one_way(package):
    """They know ``fedsim.core`` and themselves; all else knows them."""
    for name, tree in MODULES.items():
        if not f"{name}.".startswith(f"{package}."):
            continue
        for imported in at_import(tree.body):
            ours = imported.partition(".")[0] in PACKAGES
            allowed = (f"{package}.", "fedsim.core.") if package != "fedsim.core" else ("fedsim.core.",)
            assert not ours or f"{imported}.".startswith(allowed), f"{name} imports {imported}"


def test_ray_is_imported_by_the_executors_and_the_actors_shells_alone():
    for name, tree in MODULES.items():
        path = f"{name.replace('.', '/')}.py"
        assert "ray" not in anywhere(tree) or path.startswith(RAY) or name == "fedsim.doctor.cluster", name


def test_a_newcomer_sees_few_rooms_and_each_says_what_lives_there():
    rooms = [p for p in (ROOT / "fedsim").iterdir() if p.name != "__pycache__"]
    assert len(rooms) <= MOST_ROOMS, sorted(p.name for p in rooms)
    for init in (path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")):
        says = ast.get_docstring(ast.parse(init.read_text()))
        assert says and says.splitlines()[0].endswith("."), init


def test_standard_library_names_are_not_shadowed():
    assert not set(PACKAGES) & sys.stdlib_module_names
