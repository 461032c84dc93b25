"""The house: imports go one way, without circles; mechanisms are known by their hooks."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import jaxfl

PACKAGE = Path(jaxfl.__file__).parent
ORDER = (
    ("numerics", "arguments", "component", "files", "machine", "signals", "_public"),
    ("types", "contracts"),
    ("liveness",),
    ("models", "optimizers", "devices"),
    ("aggregators",),
    ("preaggregators",),
    ("attacks", "clients", "participation", "data", "durability", "fairness", "metrics"),
    ("privacy", "robustness", "pretraining", "smoothing"),
    ("federation",),
    ("state", "accounting", "record"),
    ("local_work",),
    ("sending",),
    ("round", "evaluation"),
    ("blocks",),
    ("memory",),
    ("plan",),
    ("history", "progress"),
    ("given", "identity"),
    ("programs",),
    ("seeds",),
    ("simulation",),
    ("one_call",),
    ("auditing", "certificate", "inversion", "profiling", "trajectory"),
    ("__init__", "registry"),
    ("integrations",),
    ("torch",),
    ("experiments",),
    ("report",),
    ("commands",),
    ("cli",),
)
"""What may import what: only what stands in an earlier line, or in the same place."""


def modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of jaxfl that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in MODULES else module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module in MODULES} - {name}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imported(name) for name in MODULES}


def place(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def test_the_graph_of_imports_has_no_circle():
    # A package's own __init__ hands on what its modules define; they never import it.
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert len(order) == len(MODULES)
    assert sum(map(len, graph().values())) > 300


def test_a_circle_would_be_seen():
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph() | {"jaxfl.types": {"jaxfl.round"}}).static_order())


def test_no_import_runs_upwards():
    floor = {name: i for i, line in enumerate(ORDER) for name in line}
    assert set(floor) >= {place(name) for name in MODULES}
    for name, others in graph().items():
        for other in others:
            if place(other) != place(name):
                assert floor[place(other)] < floor[place(name)], f"{name} imports {other}"


def test_no_type_test_on_mechanisms_outside_their_package():
    own = {name for name, thing in vars(jaxfl.privacy).items() if isinstance(thing, type)}
    for name, path in MODULES.items():
        if place(name) != "privacy":
            assert not asked_types(ast.parse(path.read_text())) & own, name


def asked_types(tree):
    """The names in second arguments of isinstance and issubclass, and beside ``type(x) is``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = node.args[1:] if node.func.id in ("isinstance", "issubclass") else []
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node.left):
            asked = node.comparators
        else:
            continue
        inner = [part for one in asked for part in ast.walk(one)]
        found |= {part.id for part in inner if isinstance(part, ast.Name)}
        found |= {part.attr for part in inner if isinstance(part, ast.Attribute)}
    return found


def test_type_tests_are_seen():
    code = "isinstance(x, (A, m.B)); issubclass(x, C | D); type(x) is not E; isinstance(x.y, F)"
    assert asked_types(ast.parse(code)) >= {*"ABCDEF"}


def test_nothing_imports_for_the_types_alone():
    for name, path in MODULES.items():
        assert "TYPE_CHECKING" not in path.read_text(), name
