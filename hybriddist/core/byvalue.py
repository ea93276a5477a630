"""Pickling what the receiver cannot import: functions and classes by value, and arrays out of band.

`Reducer` decides how one object is taken apart. Most decisions are cloudpickle's; these are ours:

* A function whose globals are the script's `__main__` becomes a function of the receiver's `__main__`, and the globals
  it uses are put there (`core/mainspace.py`). cloudpickle would give it a private copy of them.
* A class that comes home to the process that defined it is that class, and is left as it is. cloudpickle would write
  the traveller's attributes over it.
* A function of `__main__` under `functools.lru_cache` goes by value, with an empty cache. Its own pickling names it.
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
from collections.abc import Callable
from typing import Any, Final

from hybriddist.core import closures, mainspace, snapshots
from hybriddist.core.ndarrays import ArrayReducer, BufferCollector

_TRAVELLED: Final = "_abc_hybriddist_travelled"
"""Attribute of a class that was rebuilt here from elsewhere. The prefix keeps `typing.Protocol` from counting it."""

_NO_FILE: Final = "<dynamic-code>"
"""What cloudpickle puts in the place of a code's file name."""

_CachedFunction: Final = type(functools.lru_cache(lambda: None))


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
        if kind is _CachedFunction and getattr(thing, "__module__", None) in closures.MAIN_MODULES:
            return _make_cached, (thing.__wrapped__, thing.cache_parameters())
        reduction = self._cloud.reducer_override(thing)
        if isinstance(thing, type) and reduction is not NotImplemented and len(reduction) == 6:
            return _mark_class(reduction)
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
        ledger.outgoing(values, snapshots.ValueMark),
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
    attributes, fields, closure, _, values, sender, foreign = state
    function.__dict__.update(attributes)
    for field, value in zip(_FIELDS, fields, strict=True):
        setattr(function, field, value)
    for own, sent in zip(function.__closure__ or (), closure or (), strict=True):
        for content in closures.cell_contents(sent):
            own.cell_contents = content
    mainspace.ledger().incoming(values, sender, foreign)


def _make_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


# ---- classes by value -------------------------------------------------------------------------------------------


def _mark_class(reduction: tuple[Any, ...]) -> Any:
    """Have the class that is made at the other end say that it came from elsewhere.

    A new class gets the mark with its first namespace. One that is found there by its tracking id keeps what it has:
    the mark if it came earlier, none if it was defined there.
    """
    make, arguments, state, _, _, fill = reduction
    if len(arguments) == 6 and isinstance(arguments[3], dict):  # not an enum, whose namespace is its members
        namespace = {**arguments[3], _TRAVELLED: True}
        return make, (*arguments[:3], namespace, *arguments[4:]), (fill, state), None, None, fill_class
    return reduction


def fill_class(cls: type[Any], state: tuple[Callable[..., Any], Any]) -> None:
    """Give a class its attributes, unless it is at home here: then its own definition counts."""
    fill, attributes = state
    if _TRAVELLED in cls.__dict__:
        fill(cls, attributes)
