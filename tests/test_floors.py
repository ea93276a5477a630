"""Imports point down: what a module may know of the others is its floor, and a test reads every import.

An import counts wherever it stands: at the top, inside a function, under ``TYPE_CHECKING``, or as a constant name
given to `import_module`. Within a floor a module may import another as long as no circle arises; an import for type
checkers only (it is not executed) may close one: two classes that hold each other must be able to say so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hybriddist"

FLOORS = [
    {"errors", "limits", "deadline", "ids", "records", "settings"},
    {"core"},
    {"transport", "memory", "greeting"},
    {"shm", "net"},
    {"runtime"},
    {"managers", "cluster", "listing", "events"},
    {
        "future",
        "reference",
        "channel",
        "handles",
        "awaiting",
        "calls",
        "evaluation",
        "on_each",
        "scopes",
        "pools",
        "caching_pool",
        "maps",
        "mapping",
        "maps_here",
        "asyncmaps",
        "asyncmap_tasks",
        "retrying",
        "batches",
        "crew",
        "lanes",
        "time_limits",
        "supply",
        "outcomes",
        "progress",
        "loops",
        "loop_guard",
        "chunks",
        "folds",
        "running_loop",
        "broadcasts",
        "placing",
        "arrays",
        "array_files",
        "array_protocol",
        "in_place",
        "shapes",
    },
    {"", "__main__", "script", "testing", "pytest_plugin"},
]
"""From the ground up: the first part of a module's name below the package; "" is the package's own `__init__`."""

SIBLINGS = [{"shm", "net"}]
"""Of one floor, and neither imports the other."""

FROM_TRANSPORT_INTO_CORE = {"Frame", "Buffer"}
"""The two types of floor 2 that floor 1 speaks of."""


def part(module: str) -> str:
    """ "hybriddist.core.frames" -> "core"."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int | None:
    return next((number for number, parts in enumerate(FLOORS) if part(module) in parts), None)


def sources() -> dict[str, str]:
    """Every module of the package: its dotted name and its text."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, text: str, modules: Mapping[str, str]) -> Iterator[tuple[int, str, str]]:
    """Line, module and name (or "") of every import of a part of the package.

    ``modules``: all that exist, to tell the module in `from hybriddist import limits` from a name.
    """
    is_package = any(other.startswith(module + ".") for other in modules)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hybriddist":
                    yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*package, *filter(None, [node.module])])
            if base.split(".")[0] == "hybriddist":
                for alias in node.names:
                    submodule = f"{base}.{alias.name}"
                    yield (node.lineno, submodule, "") if submodule in modules else (node.lineno, base, alias.name)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name, called = node.args[0].value, node.func
            verb = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if verb in ("import_module", "__import__") and str(name).split(".")[0] == "hybriddist":
                yield node.lineno, str(name), ""


def for_type_checkers(text: str) -> set[int]:
    """The lines under ``if TYPE_CHECKING``."""
    blocks = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.If)]
    return {
        line
        for node in blocks
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if not any(node_else.lineno <= line for node_else in node.orelse)
    }


def violations(modules: Mapping[str, str]) -> list[str]:
    """Every broken rule, as ``module:line: sentence``."""
    found = [f"{module}: has no floor; give it one in FLOORS" for module in modules if floor(module) is None]
    graph: dict[str, set[str]] = {}
    for module, text in modules.items():
        own = floor(module)
        unexecuted = for_type_checkers(text)
        for line, target, name in imports(module, text, modules):
            if line not in unexecuted:
                graph.setdefault(module, set()).add(target)
            other = floor(target)
            if own is None or other is None:
                continue
            accepted = part(module) == "core" and target == "hybriddist.transport" and name in FROM_TRANSPORT_INTO_CORE
            if other > own and not accepted:
                found.append(f"{module}:{line}: imports {target} {name} of floor {other} from floor {own}")
            if any(part(module) != part(target) and {part(module), part(target)} <= pair for pair in SIBLINGS):
                found.append(f"{module}:{line}: imports its sibling {target}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("imports in a circle: " + " <- ".join(error.args[1]))
    return found


def test_imports_point_down() -> None:
    found = violations(sources())
    assert not found, "\n".join(found)


UP = {"hybriddist": "", "hybriddist.limits": "", "hybriddist.transport": "", "hybriddist.cluster": ""}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("hybriddist.errors", "from hybriddist import cluster"),
        ("hybriddist.errors", "from hybriddist import addprocs"),
        ("hybriddist.errors", "import hybriddist"),
        ("hybriddist.errors", "from . import cluster"),
        ("hybriddist.core.frames", "from ..cluster import addprocs"),
        ("hybriddist.core.frames", "from hybriddist.transport import Transport"),
        ("hybriddist.core.frames", "import hybriddist.transport"),
        ("hybriddist.core.frames", "def f():\n    from hybriddist import transport"),
        ("hybriddist.core.frames", "if TYPE_CHECKING:\n    from hybriddist.cluster import addprocs"),
        ("hybriddist.core.frames", "import_module('hybriddist.cluster')"),
        ("hybriddist.core.frames", "importlib.import_module('hybriddist.cluster')"),
        ("hybriddist.shm.ring", "from hybriddist.net import address"),
        ("hybriddist.net.socket", "from ..shm.ring import Ring"),
        ("hybriddist.new_file", ""),
    ],
)
def test_an_import_that_points_up_is_found(module: str, text: str) -> None:
    assert len(violations({**UP, module: text})) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("hybriddist.core.frames", "from hybriddist.transport import Buffer, Frame"),
        ("hybriddist.core.frames", "from hybriddist import limits"),
        ("hybriddist.core.frames", "from .. import limits"),
        ("hybriddist.shm.ring", "from hybriddist.shm import segment"),
        ("hybriddist.maps", "import hybriddist.cluster"),
        ("hybriddist.errors", "import os\nfrom hybriddistant import anything"),
    ],
)
def test_an_import_that_points_down_is_not(module: str, text: str) -> None:
    assert violations({**UP, module: text}) == []


def test_a_circle_within_a_floor_is_found() -> None:
    texts = {
        "hybriddist.pools": "from hybriddist import maps",
        "hybriddist.maps": "def f():\n    from hybriddist.future import Future",
        "hybriddist.future": "import hybriddist.pools",
    }
    assert [text.partition(":")[0] for text in violations(texts)] == ["imports in a circle"]
