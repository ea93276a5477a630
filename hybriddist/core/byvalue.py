"""Pickling what the receiver cannot import: functions and classes by value, and arrays out of band.

`Reducer` decides how one object is taken apart. Most decisions are cloudpickle's; these are ours:

* A function whose globals are the script's `__main__` becomes a function of the receiver's `__main__`, and the globals
  it uses are put there (`core/mainspace.py`). cloudpickle would give it a private copy of them.
* A class is made once in each process, and comes home as what it is there (`core/classes.py`).
* A function of `__main__` under `functools.lru_cache` goes by value, with an empty cache. Its own pickling names it.
* So does a function under `functools.singledispatch`, with all that is registered. cloudpickle cannot send its cache.
* Code keeps the name of its file, so that tracebacks show its lines. cloudpickle drops it from 3.1.3 on.
* Large and read-only arrays, see `core/ndarrays.py`.

Two picklers share a reducer: the C one here, and the slow one that finds out what failed (`core/culprit.py`). What
this module does not know: when pickling by value is needed (`core/payload.py` does).
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, Final

from hybriddist.core import classes, closures, mainspace
from hybriddist.core.marks import ValueMark
from hybriddist.core.ndarrays import ArrayReducer, BufferCollector

_NO_FILE: Final = "<dynamic-code>"
"""What cloudpickle puts in the place of a code's file name."""


class Reducer:
    """How objects are taken apart. For one pickle: what it collects belongs together."""

    def __init__(self, collector: BufferCollector, *, arrays_only: bool = False) -> None:
        self._arrays = ArrayReducer(collector) if "numpy" in sys.modules else None
        self._main = mainspace.namespace()
        self._cloud: Any = None
        self.dispatch_table: Any = None
        if not arrays_only:
            import cloudpickle

            if "__mp_main__" in sys.modules:
                # A child of multiprocessing runs the script under this name, which its receivers lack as well.
                cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])
            self._cloud = cloudpickle.Pickler(io.BytesIO(), protocol=5)
            self.dispatch_table = self._cloud.dispatch_table

    def reduce(self, thing: Any) -> Any:
        """A reduction as `__reduce__` gives it, or NotImplemented: pickle it in its own way."""
        if self._arrays is not None:
            reduction = self._arrays.reduce(thing)
            if reduction is not NotImplemented:
                return reduction
        if self._cloud is None:
            return NotImplemented
        kind = type(thing)
        if kind is types.CodeType:
            return _with_file_name(thing, self._cloud.dispatch_table[kind](thing))
        if kind is types.FunctionType and (thing.__globals__ is self._main or thing.__module__ == "__mp_main__"):
            return _reduce_main_function(thing)
        if kind is closures.CachedFunction and getattr(thing, "__module__", None) in closures.MAIN_MODULES:
            return _make_cached, (thing.__wrapped__, thing.cache_parameters())
        if kind is types.FunctionType and _is_generic(thing) and thing.__module__ in closures.MAIN_MODULES:
            return _reduce_generic(thing)
        if kind is weakref.WeakKeyDictionary:  # in what `functools.singledispatchmethod` makes of a method
            return weakref.WeakKeyDictionary, (dict(thing),)
        reduction = self._cloud.reducer_override(thing)
        if isinstance(thing, type) and reduction is not NotImplemented and len(reduction) == 6:
            return classes.reduce_class(thing, reduction)
        return reduction


class ByValuePickler(pickle.Pickler):
    """The C pickler with a `Reducer`."""

    def __init__(self, file: io.BytesIO, collector: BufferCollector, reducer: Reducer) -> None:
        super().__init__(file, 5, buffer_callback=collector)
        self._reducer = reducer
        if reducer.dispatch_table is not None:
            self.dispatch_table = reducer.dispatch_table

    def reducer_override(self, thing: Any) -> Any:
        """Called by the pickler for everything but plain values."""
        return self._reducer.reduce(thing)


def dumps(thing: Any, *, arrays_only: bool = False) -> tuple[bytes, list[memoryview]]:
    """Pickle by value (or in the usual way but for arrays). Raises whatever goes wrong."""
    collector = BufferCollector()
    with io.BytesIO() as file:
        ByValuePickler(file, collector, Reducer(collector, arrays_only=arrays_only)).dump(thing)
        return file.getvalue(), collector.buffers


def _with_file_name(code: types.CodeType, reduction: Any) -> Any:
    """cloudpickle's reduction of a code object, with the code's own file name in it."""
    make, arguments = reduction
    name = code.co_filename
    return make, tuple(name if type(part) is str and part == _NO_FILE else part for part in arguments)


# ---- functions of __main__ --------------------------------------------------------------------------------------

_FIELDS: Final = (
    "__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__",
)  # fmt: skip


def _reduce_main_function(function: types.FunctionType) -> Any:
    values = closures.used_globals(function)
    closure = function.__closure__
    reached = list(values.values())
    for cell in closure or ():
        reached += closures.cell_contents(cell)
    ledger = mainspace.ledger()
    state = (
        function.__dict__,
        [getattr(function, field) for field in _FIELDS],
        closure,
        closures.used_submodules(function, reached),  # importing them is all that is wanted
        values,
        ledger.token,
        *ledger.outgoing(values, ValueMark),
    )
    # The cells come with the state, since one may hold the function itself: what it refers to is pickled once it is
    # known to the pickler.
    return make_main_function, (function.__code__, len(closure or ())), state, None, None, fill_main_function


def make_main_function(code: types.CodeType, cells: int) -> types.FunctionType:
    """A function of this process's `__main__`, still without what it refers to."""
    closure = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(code, mainspace.namespace(), closure=closure)


def fill_main_function(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Give the function what it refers to, and `__main__` the globals it uses."""
    attributes, fields, closure, _, values, sender, labels, foreign = state
    function.__dict__.update(attributes)
    for field, value in zip(_FIELDS, fields, strict=True):
        setattr(function, field, value)
    for own, sent in zip(function.__closure__ or (), closure or (), strict=True):
        for content in closures.cell_contents(sent):
            own.cell_contents = content
    mainspace.ledger().incoming(values, sender, labels, foreign)


def _make_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


# ---- functions that choose by the type of their argument --------------------------------------------------------

_GENERIC_CODE: Final = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]
_OF_GENERIC: Final = frozenset({"register", "dispatch", "registry", "_clear_cache"})


def _is_generic(function: types.FunctionType) -> bool:
    """Whether `functools.singledispatch` has made it."""
    return function.__code__ is _GENERIC_CODE and hasattr(function, "registry")


def _reduce_generic(function: Any) -> Any:
    attributes = {name: value for name, value in function.__dict__.items() if name not in _OF_GENERIC}
    state = (dict(function.registry), attributes, [getattr(function, field) for field in _FIELDS])
    # All comes with the state: what is registered may refer to the function.
    return _make_generic, (), state, None, None, _fill_generic


def _make_generic() -> Any:
    return functools.singledispatch(_fill_generic)


def _fill_generic(function: Any, state: tuple[Any, ...]) -> None:
    registry, attributes, fields = state
    for kind, implementation in registry.items():
        function.register(kind, implementation)
    function.__dict__.update(attributes)
    for field, value in zip(_FIELDS, fields, strict=True):
        setattr(function, field, value)
