"""Would sending this function again give the same? Asked at each call of a function that the other end knows.

A by-value function is sent with its code, defaults, closure and globals. A snapshot remembers these objects and
compares them by identity (0.2 µs for a small function). That is enough for what cannot change: numbers, strings, tuples
of such, modules, what is found by name in a module, and functions of which the same is true.

Globals of `__main__` may be more: of them the *content* is remembered, and compared with each call. They stay at the
other end, so they are to be sent again only if they have changed::

    list, dict, set                       a shallow copy; the elements are looked at in turn
    an object whose class has __hash__    its hash: what the class says is the same, is the same
    an object of a class of __main__      its attributes, and what the class is made of
    bytearray, numpy array                its bytes, up to 1 MiB

What is none of these, or has more parts than comparing is worth, has no snapshot and is sent with each call. So is what
sits in a closure or is a default value: each call is to find it as it is here.

What this module does not know: keys, pickles, connections.
"""

from __future__ import annotations

import collections
import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from hybriddist.core import closures, contents, mainspace

_MOST_PARTS: Final = 64
"""Objects that a snapshot looks at. Comparing more costs as much as sending a small function again."""

_MOST_ELEMENTS: Final = 10_000
"""Objects in the contents of globals: comparing takes about 30 ns each, less than pickling and unpickling them."""

_MOST_BYTES: Final = 1 << 20
"""Of an array: 0.2 ms to compare. A larger one is sent again: inside a node that takes no longer."""

_PICKLING: Final = frozenset({"__getstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"})

_MISSING: Final = object()
_ITSELF: Final = object()
"""Stands for the function of the snapshot, which must not be kept alive by it."""

_CODE: Final = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, int, str)
"""Types of globals that are kept: the program does not let go of its code, and the rest is small."""

_ATOMS: Final = frozenset(
    {int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented), range}
)


class Snapshot:
    """The objects that went along with a function.

    Holding them keeps their addresses from being used again, which makes comparing by identity safe. The function
    itself is not held (but for functions that call each other through their closures: these stay until the cache
    drops them). Nor are globals whose types allow that (`contents.held`), such as channels and objects of the script's
    classes: the program may want to let go of them.
    """

    __slots__ = (
        "_by_pickling", "_changes", "_contents", "_functions", "_held_items", "_items", "_ledger", "_numbers", "_sizes",
    )  # fmt: skip

    def __init__(self) -> None:
        self._contents: list[contents.Content] = []
        self._by_pickling: Snapshot | None = None
        """Of what pickling itself may change: it runs methods of such a class as counts how often it is pickled."""
        self._functions: list[tuple[Any, Any, Any, Any, tuple[Any, ...]]] = []
        """(function, code, defaults, keyword defaults, contents of the closure's cells)"""
        self._items: list[tuple[Mapping[str, Any], str, Any]] = []
        """(namespace, name, value)"""
        self._held_items: list[tuple[Mapping[str, Any], str, Any]] = []
        """Likewise, with values that are not kept alive."""
        self._sizes: list[tuple[Mapping[str, Any], int]] = []
        """Of dicts that count as a whole."""
        self._ledger: mainspace.Ledger | None = None
        self._numbers: dict[str | type[Any], int] = {}
        """Of names in `__main__`, and of its classes: which of their values was sent last."""
        self._changes = -1
        """Of the ledger, when the numbers were last found to be the same."""

    @classmethod
    def take(cls, function: Any, *, by_code: bool = False) -> Snapshot | None:
        """A snapshot of now, or None if it is not certain that a change would be noticed.

        Args:
            function: any callable.
            by_code: it will be compared only with functions of the same code, which is not kept alive either.
        """
        taken = cls()
        return taken if _Taker(taken, function, by_code=by_code).succeeds(function, in_global=False) else None

    @classmethod
    def of_value(cls, value: Any, *, is_attribute: bool = False) -> Snapshot | None:
        """Of the value of a global of `__main__`, or of an attribute of a class, whose content may change.

        What has a number of its own is left out, since it is seen there whether that has changed: the globals of
        functions of `__main__`, and the attributes of classes.
        """
        taken = cls()
        taker = _Taker(taken, object(), alone=True)
        return taken if taker.succeeds(value, in_global=True, is_attribute=is_attribute) else None

    def settled(self, function: Any, *, by_code: bool = False) -> Snapshot | None:
        """The snapshot to keep once the function was pickled: what went out just now is what the other end will have.

        Returns:
            This one, if pickling has changed nothing. None if the function is not what it was when this snapshot was
            taken, before.
        """
        if self.is_current(function):
            return self
        after = Snapshot.take(function, by_code=by_code)
        rest = Snapshot()
        rest._functions, rest._items, rest._sizes = self._functions, self._items, self._sizes
        rest._contents, rest._held_items = self._contents, self._held_items
        return after if rest.is_current(function) else None

    def is_current(self, function: Any) -> bool:
        """Whether all is as it was when the snapshot was taken of ``function``."""
        for part, code, defaults, keyword_defaults, captured in self._functions:
            if part is _ITSELF:
                part = function
            if part.__code__ is not code and code is not _ITSELF:
                return False
            if part.__defaults__ is not defaults:
                return False
            if part.__kwdefaults__ is not keyword_defaults or part.__dict__:
                return False
            if captured:
                try:
                    for cell, content in zip(part.__closure__, captured, strict=True):
                        if cell.cell_contents is not (function if content is _ITSELF else content):
                            return False
                except ValueError:  # a variable is unbound meanwhile
                    return False
        for namespace, name, value in self._items:
            if namespace.get(name, _MISSING) is not (function if value is _ITSELF else value):
                return False
        for namespace, name, value in self._held_items:
            if not contents.holds(value, namespace.get(name, _MISSING)):
                return False
        for mapping, size in self._sizes:
            if len(mapping) != size:
                return False
        if self._contents and not all(map(contents.is_unchanged, self._contents)):
            return False
        if self._by_pickling is not None and not self._by_pickling.is_current(function):
            return False
        # The other end has one __main__. If another function took another value of some name there, ours must be sent
        # again although it is what it was.
        return self._ledger is None or self._changes == self._ledger.changes or self._is_latest(self._ledger)

    def _is_latest(self, ledger: mainspace.Ledger) -> bool:
        changes = ledger.changes
        for key, number in self._numbers.items():
            if ledger.number(key) != number:
                return False
        self._changes = changes
        return True


class _Taker:
    """Fills a snapshot."""

    def __init__(self, snapshot: Snapshot, function: Any, *, by_code: bool = False, alone: bool = False) -> None:
        self._snapshot = snapshot
        self._alone = alone
        """Whether what has a number of its own is left out."""
        self._itself = function
        self._by_code = by_code
        self._seen: set[int] = set()
        self._parts = 0
        self._elements = 0
        self._in_global = False
        """Whether what is looked at belongs to a global of `__main__`: then its content may be remembered."""

    def succeeds(self, value: Any, *, in_global: bool, is_attribute: bool = False) -> bool:
        """Take the value of the snapshot in, whatever it is."""
        self._in_global = in_global
        try:
            return self._is_certain_attribute(value) if is_attribute else self.is_certain(value)
        except Exception:  # nested too deeply, changed by another thread meanwhile, or its __hash__ raises
            return False

    def is_certain_global(self, value: Any) -> bool:
        """Take in the value of a global of `__main__`."""
        before, self._in_global = self._in_global, True
        try:
            return self.is_certain(value)
        finally:
            self._in_global = before

    def is_certain(self, value: Any) -> bool:
        """Take a value in; False if it may change without our noticing, or if there are too many parts."""
        kind = type(value)
        if kind in _ATOMS or id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if self._in_global:
            self._elements += 1
        else:
            self._parts += 1
        if self._is_too_much():
            return False
        if kind is tuple or kind is frozenset:
            return all(map(self.is_certain, value))
        if kind is types.ModuleType:
            return sys.modules.get(value.__name__) is value
        if isinstance(value, type):
            return self._alone or closures.is_named(value) or (self._in_global and self._is_certain_class(value))
        if kind is types.BuiltinFunctionType:
            return closures.is_named(value)
        if kind is types.FunctionType:
            return closures.is_named(value) or self._is_certain_function(value)
        if kind is closures.CachedFunction:  # it goes with an empty cache
            return closures.is_named(value) or self.is_certain(value.__wrapped__)
        if kind is functools.partial:
            return not value.__dict__ and all(map(self.is_certain, (value.func, value.args))) and (
                self._are_certain(value.keywords)
            )  # fmt: skip
        return self._in_global and self._is_certain_content(value)

    def _is_too_much(self) -> bool:
        return self._parts + len(self._snapshot._items) > _MOST_PARTS or self._elements > _MOST_ELEMENTS

    def _is_certain_content(self, value: Any) -> bool:
        """Take in something that may change, and whose content can be compared."""
        kind = type(value)
        if isinstance(value, contents.SIZED) and len(value) > _MOST_ELEMENTS:
            return False
        if kind in contents.SEQUENCES:
            return self._is_held(tuple, value)
        if kind in contents.MAPPINGS:
            return self._is_held(contents.keys_and_values, value)
        if kind is collections.defaultdict:
            return self._is_held(contents.default_dict, value)
        if kind is bytearray:
            return len(value) <= _MOST_BYTES and self._is_held(bytes, value)
        if contents.is_plain_array(value):
            return bool(value.nbytes <= _MOST_BYTES) and self._is_held(contents.array_bytes, value)
        if isinstance(kind.__hash__, types.FunctionType):
            return self.is_certain(kind) and self._is_held(hash, value)
        if all(base is object or base.__module__ in closures.MAIN_MODULES for base in kind.__mro__):
            return self.is_certain(kind) and self._is_held(contents.attributes, value)
        return False

    def _is_held(self, read: Callable[[Any], Any], value: Any) -> bool:
        content = read(value)
        entry = contents.held(value, content)
        self._snapshot._contents.append((read, entry, content if entry is value else None))
        if type(content) is not tuple:
            return True
        self._elements += len(content)
        return not self._is_too_much() and all(map(self.is_certain, content))

    def _is_certain_class(self, cls: Any) -> bool:
        """Take in a class of `__main__`, which goes by value: its bases and attributes."""
        if type(cls) is not type or cls.__module__ not in closures.MAIN_MODULES:
            return False
        whole = self._snapshot
        self._note_number(cls)
        if not _PICKLING.isdisjoint(cls.__dict__):
            if whole._by_pickling is None:
                whole._by_pickling = Snapshot()
            self._snapshot = whole._by_pickling
        try:
            return all(map(self.is_certain, cls.__bases__)) and self._are_certain_attributes(cls)
        finally:
            self._snapshot = whole

    def _are_certain_attributes(self, cls: type) -> bool:
        content = contents.class_parts(cls)
        self._snapshot._contents.append((contents.class_parts, cls, content))
        self._elements += len(content)
        return all(map(self._is_certain_attribute, content))

    def _is_certain_attribute(self, part: Any) -> bool:
        if isinstance(part, staticmethod | classmethod):
            part = part.__func__
        if contents.is_generated(part):
            return True
        accessors = (part.fget, part.fset, part.fdel) if type(part) is property else (part,)
        return all(
            isinstance(accessor, types.MemberDescriptorType) or self.is_certain(accessor) for accessor in accessors
        )

    def _is_certain_function(self, function: types.FunctionType) -> bool:
        """Take in a function that goes by value. Running it does not depend on its annotations."""
        usage = closures.usage(function.__code__)
        namespace = function.__globals__
        main = namespace is mainspace.namespace()
        # What a run leaves in its own cells or globals would be seen by the next run under the key, but not by one
        # that is sent anew. In __main__ it is to be seen by the next one. Attributes are where functions keep state.
        if usage.stores_cells or (usage.stores_globals and not main) or function.__dict__:
            return False
        in_global, self._in_global = self._in_global, False
        try:
            return self._are_certain_parts(function, usage, main=main)
        finally:
            self._in_global = in_global

    def _are_certain_parts(self, function: types.FunctionType, usage: closures.Usage, *, main: bool) -> bool:
        namespace = function.__globals__
        captured: list[Any] = []
        for cell in function.__closure__ or ():
            content = closures.cell_contents(cell)
            if not content or not self.is_certain(content[0]):
                return False
            captured.append(self._held(content[0]))
        self._snapshot._functions.append(
            (
                self._held(function, _ITSELF),
                _ITSELF if self._by_code and function is self._itself else function.__code__,
                function.__defaults__,
                function.__kwdefaults__,
                tuple(captured),
            )
        )
        for name in () if main and self._alone else usage.globals:
            value = namespace.get(name, _MISSING)
            # One that is missing is a builtin, or will be defined: then the snapshot is no longer current.
            if value is not _MISSING:
                if not (self.is_certain_global(value) if main else self.is_certain(value)):
                    return False
                if main:
                    self._note_number(name)
            if main and not isinstance(value, _CODE):
                self._snapshot._held_items.append((namespace, name, contents.held(value)))
            else:
                self._snapshot._items.append((namespace, name, self._held(value)))
        return self.is_certain(function.__defaults__) and self._are_certain(function.__kwdefaults__ or {})

    def _note_number(self, key: str | type[Any]) -> None:
        if self._snapshot._ledger is None:
            self._snapshot._ledger = mainspace.ledger()
        self._snapshot._numbers[key] = self._snapshot._ledger.number(key)

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
