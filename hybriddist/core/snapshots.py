"""Would sending this function again give the same? Asked at each call of a function that the other end knows.

A by-value function is sent with its code, defaults, closure and globals. A snapshot remembers these objects and
compares them by identity (0.2 µs for a small function). Identity tells nothing about the content of a list, so a
function has a snapshot only if all that goes along is immutable: numbers, strings, tuples of such, modules, what is
found by name in a module, and functions of which the same is true.

What this module does not know: keys, pickles, connections.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from typing import Any, Final

from hybriddist.core import closures, mainspace

_MOST_PARTS: Final = 64
"""Objects that a snapshot looks at. Comparing more costs as much as sending a small function again."""

_MISSING: Final = object()
_ITSELF: Final = object()
"""Stands for the function of the snapshot, which must not be kept alive by it."""

_ATOMS: Final = frozenset(
    {int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented), range}
)


class Snapshot:
    """The objects that went along with a function.

    Holding them keeps their addresses from being used again, which makes comparing by identity safe. The function
    itself is not held (but for functions that call each other through their closures: these stay until the cache
    drops them).
    """

    __slots__ = ("_functions", "_generation", "_items", "_ledger", "_sizes")

    def __init__(self) -> None:
        self._functions: list[tuple[Any, Any, Any, Any, tuple[Any, ...]]] = []
        """(function, code, defaults, keyword defaults, contents of the closure's cells)"""
        self._items: list[tuple[Mapping[str, Any], str, Any]] = []
        """(namespace, name, value)"""
        self._sizes: list[tuple[Mapping[str, Any], int]] = []
        """Of dicts that count as a whole."""
        self._ledger: mainspace.Ledger | None = None
        self._generation = 0

    @classmethod
    def take(cls, function: Any) -> Snapshot | None:
        """A snapshot of now, or None if it is not certain that the function stays as it is."""
        taken = cls()
        return taken if _Taker(taken, function).is_certain(function) else None

    def is_current(self, function: Any) -> bool:
        """Whether all is as it was when the snapshot was taken of ``function``."""
        for part, code, defaults, keyword_defaults, contents in self._functions:
            if part is _ITSELF:
                part = function
            if part.__code__ is not code or part.__defaults__ is not defaults:
                return False
            if part.__kwdefaults__ is not keyword_defaults or part.__dict__:
                return False
            if contents:
                try:
                    for cell, content in zip(part.__closure__, contents, strict=True):
                        if cell.cell_contents is not (function if content is _ITSELF else content):
                            return False
                except ValueError:  # a variable is unbound meanwhile
                    return False
        for namespace, name, value in self._items:
            if namespace.get(name, _MISSING) is not (function if value is _ITSELF else value):
                return False
        for mapping, size in self._sizes:
            if len(mapping) != size:
                return False
        # The other end has one __main__. If another function took another value of some name there, ours must be sent
        # again although it is what it was.
        return self._ledger is None or self._ledger.generation == self._generation


class _Taker:
    """Fills a snapshot."""

    def __init__(self, snapshot: Snapshot, function: Any) -> None:
        self._snapshot = snapshot
        self._itself = function
        self._seen: set[int] = set()

    def is_certain(self, value: Any) -> bool:
        """Take a value in; False if it may change without our noticing, or if there are too many parts."""
        kind = type(value)
        if kind in _ATOMS or id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if len(self._seen) + len(self._snapshot._items) > _MOST_PARTS:
            return False
        if kind is tuple or kind is frozenset:
            return all(map(self.is_certain, value))
        if kind is types.ModuleType:
            return sys.modules.get(value.__name__) is value
        if isinstance(value, type) or kind is types.BuiltinFunctionType:
            return closures.is_named(value)
        if kind is types.FunctionType:
            return closures.is_named(value) or self._is_certain_function(value)
        if kind is functools.partial:
            return not value.__dict__ and all(map(self.is_certain, (value.func, value.args))) and (
                self._are_certain(value.keywords)
            )  # fmt: skip
        return False

    def _is_certain_function(self, function: types.FunctionType) -> bool:
        """Take in a function that goes by value. Running it does not depend on its annotations."""
        usage = closures.usage(function.__code__)
        namespace = function.__globals__
        main = namespace is mainspace.namespace()
        # What a run leaves in its own cells or globals would be seen by the next run under the key, but not by one
        # that is sent anew. In __main__ it is to be seen by the next one. Attributes are where functions keep state.
        if usage.stores_cells or (usage.stores_globals and not main) or function.__dict__:
            return False
        contents: list[Any] = []
        for cell in function.__closure__ or ():
            content = closures.cell_contents(cell)
            if not content or not self.is_certain(content[0]):
                return False
            contents.append(self._held(content[0]))
        self._snapshot._functions.append(
            (
                self._held(function, _ITSELF),
                function.__code__,
                function.__defaults__,
                function.__kwdefaults__,
                tuple(contents),
            )
        )
        for name in usage.globals:
            value = namespace.get(name, _MISSING)
            # One that is missing is a builtin, or will be defined: then the snapshot is no longer current.
            if value is not _MISSING:
                if not self.is_certain(value):
                    return False
                if main and self._snapshot._ledger is None:
                    self._snapshot._ledger = ledger = mainspace.ledger()
                    self._snapshot._generation = ledger.generation
            self._snapshot._items.append((namespace, name, self._held(value)))
        return self.is_certain(function.__defaults__) and self._are_certain(function.__kwdefaults__ or {})

    def _are_certain(self, mapping: Mapping[str, Any]) -> bool:
        """Take in keyword defaults or a partial's keywords: a dict that nobody changes, but somebody could."""
        if mapping:
            self._snapshot._sizes.append((mapping, len(mapping)))
        for name, value in list(mapping.items()):
            if not self.is_certain(value):
                return False
            self._snapshot._items.append((mapping, name, self._held(value)))
        return len(self._snapshot._items) <= _MOST_PARTS

    def _held(self, value: Any, stand_in: Any = _ITSELF) -> Any:
        return stand_in if value is self._itself else value
