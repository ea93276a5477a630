"""Whether a function has captured so much that it is worth while to send that in another way than by pickling it.

Asked before the function is pickled, because a pickle runs code of the user's and copies. So what the function holds is
looked at as the garbage collector sees it, from the outside: no code of the user's runs. Only numpy arrays count: what
is large and travels beside the pickle is their memory, also inside of data frames and the like. Who holds an array in
more steps than are looked at is sent as always.

What this module does not know: pickles, and where data could be put.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import deque
from typing import Any, Final

from hybriddist.core import closures

_MOST_OBJECTS: Final = 256
"""Looked at, some 0.1 µs each."""

_LEAVES: Final = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.CodeType)


def captured_bytes(function: Any) -> int:
    """How many bytes of array memory a callable would take along, as far as can be seen; not less than there are
    in its closure, defaults, globals of `__main__`, arguments of a partial, and the object of a method."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return 0
    total = 0
    seen: set[int] = set()
    line: deque[Any] = deque([function])
    while line and len(seen) < _MOST_OBJECTS:
        thing = line.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, numpy.ndarray):
            if not thing.dtype.hasobject:
                total += int(thing.nbytes)
        elif isinstance(thing, types.FunctionType):
            if not closures.is_named(thing):
                line.extend(_parts_of(thing))
        elif not isinstance(thing, _LEAVES):
            line.extend(gc.get_referents(thing))
    return total


def _parts_of(function: types.FunctionType) -> list[Any]:
    """What goes along with a function that goes by value."""
    parts: list[Any] = [function.__defaults__, function.__kwdefaults__, function.__dict__]
    for cell in function.__closure__ or ():
        parts += closures.cell_contents(cell)
    if function.__module__ in closures.MAIN_MODULES:
        parts += closures.used_globals(function).values()
    return parts


__all__ = ["captured_bytes"]
