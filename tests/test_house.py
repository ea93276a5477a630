"""Rules of the house that a reader of one file cannot see: sizes, forbidden words, what an import loads."""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.scripts import ScriptRunner

PACKAGE = Path(__file__).resolve().parents[1] / "hybriddist"
TEXTS = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}

ARE_ABOUT = {(name, "numpy") for name in ("arrays.py", "array_protocol.py", "in_place.py", "shapes.py")}
"""Modules that are about a heavy one, and are themselves imported only where they are used."""
HEAVY = ["asyncio", "cloudpickle", "ctypes", "multiprocessing", "numpy", "paramiko", "psutil", "ssl"]
"""Each costs 5 to 500 ms to import, or a thread, so it is imported where it is used."""

CONFINED = {
    r"\bpickle\.loads?\b|\bUnpickler\b": {"core/payload.py"},
    r"\bmultiprocessing\.shared_memory\b|\bshared_memory\.SharedMemory\b": {"shm/segment.py"},
    r"['\"]HYBRIDDIST_[A-Z_]+['\"]": {"settings.py"},  # as a key; a message may name a variable
    r"\btime\.time\(|from time import .*\btime\b": set(),
    r"\bAutoAddPolicy\b|\bWarningPolicy\b": set(),
}
"""What only these files may say (in code; comments and docstrings are free)."""


def code_of(name: str) -> str:
    """The file's code without comments and docstrings, one statement a line."""
    tree = ast.parse(TEXTS[name])
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not is_text(s)] or [ast.Pass()]
    return ast.unparse(tree)


def is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def mutable_state(tree: ast.Module) -> Iterator[str]:
    """Names at module level bound to a list, dict, set, or the like, unless marked as constants.

    A constant is `Final`, or written in capitals: it is filled where it stands and never changed.
    """
    makers = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
    makers |= {"WeakValueDictionary", "WeakKeyDictionary", "WeakSet", "count"}
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets, marked = statement.targets, False
        elif isinstance(statement, ast.AnnAssign):
            targets, marked = [statement.target], "Final" in ast.unparse(statement.annotation)
        else:
            continue
        value = statement.value
        made = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in makers
        if not (made or isinstance(value, literals)):
            continue
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not (marked or name.lstrip("_").isupper() or name == "__all__"))


def test_no_file_is_over_400_lines_and_the_median_is_under_200() -> None:
    lines = {name: text.count("\n") for name, text in TEXTS.items()}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert statistics.median(count for count in lines.values() if count) < 200


def test_files_are_named_by_their_content() -> None:
    folders = [PACKAGE, *(PACKAGE.parent / name for name in ("tests", "examples", "benchmarks"))]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path for path in paths if re.search(r"util|misc|common", path.stem)] == []


@pytest.mark.parametrize("pattern", CONFINED)
def test_confined_words(pattern: str) -> None:
    found = {name for name in TEXTS if re.search(pattern, code_of(name))}
    assert found <= CONFINED[pattern]


def test_cursors_are_never_packed_into_shared_memory() -> None:
    """`struct.pack_into` clears its target before it writes: readers in another process saw transient zeros."""
    assert [name for name in TEXTS if name.startswith("shm/") and "pack_into" in code_of(name)] == []


def test_no_module_keeps_mutable_state() -> None:
    found = {name: names for name, tree in TREES.items() if (names := list(mutable_state(tree)))}
    assert found == {}


def test_no_function_rebinds_a_module_level_name() -> None:
    found = [f"{name}:{n.lineno}" for name, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, ast.Global)]
    # The one name that must be global: which object is "this process".
    assert [place for place in found if not place.startswith("runtime/process.py:")] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cache = {}", ["cache"]),
        ("seen: set[int] = set()", ["seen"]),
        ("ids = itertools.count(1)", ["ids"]),
        ("a = b = []", ["a", "b"]),
        ("TABLE = {}; _TABLE = []; x: Final = {}; y = (); __all__ = []; z = frozenset()", []),
        ("def f():\n    cache = {}", []),
    ],
)
def test_mutable_state_is_recognised(text: str, names: list[str]) -> None:
    assert list(mutable_state(ast.parse(text))) == names


def test_heavy_modules_are_not_imported_at_module_level() -> None:
    found = []
    for name, tree in TREES.items():
        for node in tree.body:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            heavy = [m for m in modules if m.split(".")[0] in HEAVY]
            found += [f"{name}:{node.lineno}: {m}" for m in heavy if (name, m.split(".")[0]) not in ARE_ABOUT]
    assert found == []


def test_importing_the_package_loads_nothing_heavy_and_starts_nothing(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import sys
        bare = set(sys.modules)
        import hybriddist, json, threading
        hybriddist.addprocs
        print(json.dumps([sorted(set(sys.modules) - bare), threading.active_count()]))
        """
    )
    assert done.returncode == 0, done.stderr
    loaded, threads = json.loads(done.stdout)
    assert [name for name in HEAVY if name in loaded] == []
    assert threads == 1
    # A bound on the number of modules stands for one on the time, which would depend on the machine.
    assert len([name for name in loaded if not name.startswith("hybriddist")]) < 120


def test_every_public_name_is_documented() -> None:
    import hybriddist

    missing = []
    for name in hybriddist.__all__:
        thing = getattr(hybriddist, name)
        if inspect.isclass(thing) or callable(thing):
            # The docstring must be its own: one that is inherited or generated tells nothing.
            text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
            if not text or text.startswith(f"{name}("):
                missing.append(name)
    assert missing == []
    assert len(set(hybriddist.__all__)) == len(hybriddist.__all__)


def test_every_module_says_what_it_is_for() -> None:
    missing = [name for name, tree in TREES.items() if TEXTS[name].strip() and not ast.get_docstring(tree)]
    assert missing == []


def test_public_names_are_found_where_they_are_said_to_be() -> None:
    import hybriddist

    promised = {name for names in hybriddist._HOMES.values() for name in names}
    assert promised == set(hybriddist.__all__)
    for name in promised:
        assert getattr(hybriddist, name) is not None
    shown = dir(hybriddist)  # after use, when the names are in the module too
    assert sorted(set(shown)) == shown
    assert {name for name in shown if not name.startswith("__")} == promised
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hybriddist.nonsense  # noqa: B018


def test_no_module_stands_in_the_place_of_a_public_name() -> None:
    import hybriddist

    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert modules.isdisjoint(hybriddist.__all__)
