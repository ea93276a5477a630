"""What a function's code refers to, and whether an object is found by name in another process.

Two parts of the library ask: pickling by value (which globals must go along?) and the function cache (would sending
this function again give the same?). Both are answered from the bytecode, since it tells a global from an attribute of
the same name. What this module does not know: pickles, connections.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable
from typing import Any, Final

from hybriddist.records import Record

MAIN_MODULES: Final = frozenset({"__main__", "__mp_main__"})
"""The caller's script, also as `multiprocessing` names it in its children: every process has another one."""

CachedFunction: Final = type(functools.lru_cache(lambda: None))
"""What `functools.lru_cache` makes."""

_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL"})
"""Instructions that need a global's value. Class bodies inside functions use the middle two."""

_OF_THE_MODULE_ITSELF: Final = frozenset(
    {"__name__", "__qualname__", "__builtins__", "__spec__", "__loader__", "__package__", "__cached__"}
)
"""Names that each module has for itself; the sender's value would be wrong in the receiver's."""


class Usage(Record):
    """The names that a code object and the functions defined in it refer to."""

    globals: tuple[str, ...]
    """Global names read (builtins among them), in order of appearance."""

    names: frozenset[str]
    """All names: globals and attributes. `os.path.join` has `path` and `join`."""

    stores_globals: bool
    """Whether it rebinds a global: then a second run may see what the first one left."""

    stores_cells: bool
    """Whether it rebinds a variable of its closure."""


@functools.lru_cache(maxsize=1024)
def usage(code: types.CodeType) -> Usage:
    """What the code refers to. Remembered, because reading bytecode takes about 1 µs an instruction."""
    import dis  # 2 ms of a worker's start

    found: dict[str, None] = {}
    names: set[str] = set()
    stores_globals = stores_cells = False
    codes = [code]
    for part in codes:  # grows while it is read
        names.update(part.co_names)
        codes += [constant for constant in part.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(part):
            operation = instruction.opname
            if operation in _READS:
                found[instruction.argval] = None
            elif operation == "STORE_GLOBAL":
                stores_globals = True
            elif operation in ("STORE_DEREF", "DELETE_DEREF"):
                # By name: an inner function that rebinds a variable of its own parent counts too if it has the name
                # of one of ours. That errs on the side of sending again.
                stores_cells = stores_cells or instruction.argval in code.co_freevars
    return Usage(tuple(n for n in found if n not in _OF_THE_MODULE_ITSELF), frozenset(names), stores_globals,
                 stores_cells)  # fmt: skip


def used_globals(function: types.FunctionType) -> dict[str, Any]:
    """The globals that the function reads and that exist, with their values of now."""
    namespace = function.__globals__
    return {name: namespace[name] for name in usage(function.__code__).globals if name in namespace}


def used_submodules(function: types.FunctionType, values: Iterable[Any]) -> list[types.ModuleType]:
    """Loaded submodules that the function reaches as attributes of the packages among ``values``.

    `import xml.dom` binds only `xml`. The receiver must import `xml.dom` too, or `xml.dom` is no attribute there.
    """
    prefixes = tuple(value.__name__ + "." for value in values if isinstance(value, types.ModuleType))
    if not prefixes:
        return []
    names = usage(function.__code__).names
    found = []
    for name, module in list(sys.modules.items()):
        for prefix in prefixes:
            if name.startswith(prefix) and names.issuperset(name[len(prefix) :].split(".")):
                found.append(module)
    return found


def cell_contents(cell: types.CellType) -> tuple[Any, ...]:
    """The cell's content in a tuple; empty for a variable that is not bound (yet)."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def is_named(thing: Any) -> bool:
    """Whether a function or class is found under its module and name, so that a pickle may refer to it by name.

    Never true for the caller's script: the other process has another `__main__`.
    """
    module_name = getattr(thing, "__module__", None)
    if not isinstance(module_name, str) or module_name in MAIN_MODULES:
        return False
    found: Any = sys.modules.get(module_name)
    try:
        for name in thing.__qualname__.split("."):
            found = getattr(found, name)
    except AttributeError:
        return False
    return found is thing
