"""The commonest arrays, contiguous ones of plain numbers, without numpy's pickling: a call with one costs 5 µs less.

numpy's own pickle of an array names a function and carries the dtype as an object; both are looked up again at the
other end. Here an array becomes its dtype's name and its shape (and, if it is small, its bytes), which any pickler
writes in 0.6 µs::

    f(a, 3)  ──►  | mark | pickle of [("<f8", (1000, 80)), 3] |  +  the memory of a, beside it
                     │
                     1: one array    2: the items of a tuple    3: the arguments of a call

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

_ARRAY: Final = b"\1"
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
    if value.__class__ is not tuple:
        if value.__class__ is not _array_type():
            return None
        buffers: list[memoryview] = []
        part = _take_apart(value, buffers)
        return None if part is None else (_ARRAY + dumps(part, 5), buffers)
    things = value[0] if value and value[0].__class__ is tuple else value
    for thing in things:
        if thing.__class__ not in _SCALARS:
            return _dump_several(value, things) if thing.__class__ is _array_type() else None
    return None


def _array_type() -> Any:
    """numpy's, if numpy is loaded: otherwise nothing can be an array."""
    return getattr(sys.modules.get("numpy"), "ndarray", None)


def _dump_several(value: tuple[Any, ...], things: tuple[Any, ...]) -> tuple[bytes, list[memoryview]] | None:
    if value is things:
        mark = _ITEMS
    elif len(value) == 2 and value[1] == {}:
        mark = _ARGUMENTS
    else:
        return None
    array_type = _array_type()
    parts: list[Any] = []
    buffers: list[memoryview] = []
    arrays = set()
    for thing in things:
        if thing.__class__ in _SCALARS:
            parts.append(thing)
        elif thing.__class__ is array_type and id(thing) not in arrays:
            arrays.add(id(thing))
            part = _take_apart(thing, buffers)
            if part is None:
                return None
            parts.append(part)
        else:
            return None
    if len(buffers) > 1 and (len(buffers) > limits.MAX_BUFFERS or sum(map(len, buffers)) > MOST_BYTES):
        return None
    return mark + dumps(parts, 5), buffers


def _take_apart(array: Any, buffers: list[memoryview]) -> tuple[Any, ...] | None:
    """The part that stands for an array, whose memory is added to ``buffers``; None if it is not plain."""
    dtype = array.dtype
    name = _NAMES.get(dtype.char)
    if (
        name is None
        or not dtype.isnative
        or dtype.metadata is not None
        or not array.flags.carray  # contiguous, aligned, and writable
        or array.nbytes > MOST_BYTES
        or array.__class__ in dispatch_table  # the user has said how arrays are to be pickled
    ):
        return None
    if array.nbytes < limits.OUT_OF_BAND_BYTES:
        return name, array.shape, array.tobytes()
    buffers.append(PickleBuffer(array).raw())
    return name, array.shape


def rebuild(mark: int, parts: Any, buffers: Iterable[Buffer]) -> Any:
    """Undo `dump`: writable arrays over the buffers, which they keep, if the buffers are writable.

    Args:
        mark: the body's first byte.
        parts: what the pickle behind it says.

    Raises:
        Whatever numpy raises if a buffer is too short for its array.
    """
    ndarray: Any = _array_type()  # 0.2 µs less than an import statement
    if ndarray is None:
        from numpy import ndarray
    data = iter(buffers)
    if mark == 1:
        return ndarray(parts[1], parts[0], next(data) if len(parts) == 2 else bytearray(parts[2]))
    for number, part in enumerate(parts):
        if part.__class__ is tuple:
            parts[number] = ndarray(part[1], part[0], next(data) if len(part) == 2 else bytearray(part[2]))
    return tuple(parts) if mark == 2 else (tuple(parts), {})


__all__ = ["MOST_BYTES", "dump", "rebuild"]
