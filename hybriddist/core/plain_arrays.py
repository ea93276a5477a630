"""The commonest arrays, contiguous ones of plain numbers, without numpy's pickling: a call with one costs 5 µs less.

numpy's own pickle of an array names a function and carries the dtype as an object; both are looked up again at the
other end. Here an array becomes its dtype's name and its shape (and, if it is small, its bytes), which any pickler
writes in 0.6 µs::

    f(a, 3)  ──►  | mark | pickle of [("<f8", (1000, 80)), 3] |  +  the memory of a, beside it
                     │
                     1: the value itself    2: the items of a tuple    3: the arguments of a call

The mark is no byte that a pickle can begin with. A value goes this way only if all its parts are such arrays, each a
different one, or plain scalars: so nothing in it can be the same object as something else in it, have a pickle of its
own, or be a reference. Everything else goes through the pickler (`core/payload.py`).

What this module does not know: frames, and who sends. It never loads numpy to send, only to receive arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from copyreg import dispatch_table
from pickle import PickleBuffer, dumps
from struct import calcsize
from typing import Any, Final

from hybriddist import limits
from hybriddist.transport import Buffer

_VALUE: Final = b"\1"
_ITEMS: Final = b"\2"
_ARGUMENTS: Final = b"\3"

_SCALARS: Final = frozenset({int, float, bool, complex, type(None), str, bytes})

_ORDER: Final = "<" if sys.byteorder == "little" else ">"

_NAMES: Final = {
    **{"?": "|b1", "b": "|i1", "B": "|u1"},
    **{code: f"{_ORDER}i{calcsize(code)}" for code in "hilq"},
    **{code: f"{_ORDER}u{calcsize(code)}" for code in "HILQ"},
    **{code: f"{_ORDER}f{calcsize(code)}" for code in "efd"},
    **{code: f"{_ORDER}c{2 * calcsize(code.lower())}" for code in "FD"},
}
"""By numpy's character, the names of dtypes that say all about them, and the same on every machine."""


MOST_BYTES: Final = limits.GIB
"""Up to here nobody asks how much memory the machine has."""


def dump(value: Any) -> tuple[bytes, list[memoryview]] | None:
    """What a value becomes that goes this way: a body, and the memory of its large arrays.

    Returns:
        None if it has no such array, or something else in it, or so much that somebody should look at it.
    """
    things = value if value.__class__ is tuple else (value,)
    if things and things[0].__class__ is tuple:
        things = things[0]
    for thing in things:
        if thing.__class__ not in _SCALARS:
            array_type = getattr(sys.modules.get("numpy"), "ndarray", None)
            return _dump(value, things, array_type) if thing.__class__ is array_type else None
    return None


def _dump(value: Any, things: tuple[Any, ...], array_type: Any) -> tuple[bytes, list[memoryview]] | None:
    if array_type in dispatch_table:
        return None  # the user has said how arrays are to be pickled
    mark = _VALUE
    if value is things:
        mark = _ITEMS
    elif value.__class__ is tuple:
        if len(value) != 2 or value[1] != {}:
            return None
        mark = _ARGUMENTS
    parts: list[Any] = []
    buffers: list[memoryview] = []
    arrays = set()
    room = MOST_BYTES
    for thing in things:
        if thing.__class__ in _SCALARS:
            parts.append(thing)
            continue
        if thing.__class__ is not array_type or id(thing) in arrays:
            return None
        arrays.add(id(thing))
        dtype = thing.dtype
        name = _NAMES.get(dtype.char)
        # Contiguous, aligned, and writable.
        if name is None or not dtype.isnative or dtype.metadata is not None or not thing.flags.carray:
            return None
        nbytes = thing.nbytes
        room -= nbytes
        if nbytes < limits.OUT_OF_BAND_BYTES:
            parts.append((name, thing.shape, thing.tobytes()))
        elif room >= 0 and len(buffers) < limits.MAX_BUFFERS:
            parts.append((name, thing.shape))
            buffers.append(PickleBuffer(thing).raw())
        else:
            return None
    return mark + dumps(parts, 5), buffers


def rebuild(mark: int, parts: list[Any], buffers: Iterable[Buffer]) -> Any:
    """Undo `dump`: writable arrays over the buffers, which they keep, if the buffers are writable.

    Args:
        mark: the body's first byte.
        parts: what the pickle behind it says.

    Raises:
        Whatever numpy raises if a buffer is too short for its array.
    """
    ndarray: Any = getattr(sys.modules.get("numpy"), "ndarray", None)  # 0.2 µs less than an import statement
    if ndarray is None:
        from numpy import ndarray
    data = iter(buffers)
    for number, part in enumerate(parts):
        if part.__class__ is tuple:
            parts[number] = ndarray(part[1], part[0], next(data) if len(part) == 2 else bytearray(part[2]))
    if mark == 3:
        return tuple(parts), {}
    return tuple(parts) if mark == 2 else parts[0]


__all__ = ["MOST_BYTES", "dump", "rebuild"]
