"""What needs no pickler: arrays of plain numbers and large bytes that are a call's arguments or its result.

numpy's own pickle of an array names a function and carries the dtype as an object; both are looked up again at the
other end. The pickler writes `bytes` into the pickle, where they are copied and searched. Here an array becomes its
dtype's name and its shape (and, if it is small, its bytes), and large bytes become next to nothing, which any pickler
writes in 0.6 µs; what they consist of goes beside it::

    f(a, 3, b"...")  ──►  | mark | pickle of [("<f8", (1000, 80)), 3, (None, 0)] |  +  memory of a  +  the bytes
                             │
                             1: one thing    2: the items of a tuple    3: the arguments of a call

The mark is no byte that a pickle can begin with. A value goes this way only if all its parts are such things, each a
different one, or plain scalars: so nothing in it can be the same object as something else in it, have a pickle of its
own, or be a reference. Everything else goes through the pickler (`core/payload.py`).

A call with a small array costs 9 µs less so, one with a million bytes 3 ms.

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

_ONE: Final = b"\1"
_ITEMS: Final = b"\2"
_ARGUMENTS: Final = b"\3"

_SCALARS: Final = frozenset({int, float, bool, complex, type(None), str})

_COMMON: Final = _SCALARS | {tuple, list, dict}
"""What is not looked at more closely."""

_BYTES: Final = (bytes, bytearray, memoryview)

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

_Part = tuple[Any, ...]


def dump(value: Any) -> tuple[bytes, list[memoryview]] | tuple[()] | None:
    """What a value becomes that goes this way: a body, and the memory of what is large.

    Returns:
        None if it has to go through the pickler; () if through one that takes arrays apart, since there is a large one
        that numpy's pickling would copy.
    """
    things = (value,) if value.__class__ is not tuple else value[0] if value and value[0].__class__ is tuple else value
    for thing in things:
        if thing.__class__ not in _COMMON and (thing.__class__ is not bytes or len(thing) >= limits.OUT_OF_BAND_BYTES):
            return _dump_looking(value, things)
    return None


def _dump_looking(value: Any, things: tuple[Any, ...]) -> tuple[bytes, list[memoryview]] | tuple[()] | None:
    array_type: Any = _array_type()
    if value.__class__ is not tuple:
        mark = _ONE
    elif value is things:
        mark = _ITEMS
    elif len(value) == 2 and value[1] == {}:
        mark = _ARGUMENTS
    else:
        return _otherwise(things, array_type)
    parts: list[Any] = []
    buffers: list[memoryview] = []
    seen = set()
    for thing in things:
        kind = thing.__class__
        if kind in _SCALARS or (kind is bytes and len(thing) < limits.OUT_OF_BAND_BYTES):
            parts.append(thing)
            continue
        part = None
        if id(thing) not in seen:
            seen.add(id(thing))
            if kind is array_type:
                part = _array_part(thing, buffers)
            elif kind in _BYTES:
                part = _bytes_part(thing, buffers)
        if part is None:
            return _otherwise(things, array_type)
        parts.append(part)
    if buffers and (len(buffers) > limits.MAX_BUFFERS or sum(map(len, buffers)) > MOST_BYTES):
        return None
    return mark + dumps(parts, 5), buffers


def _array_type() -> Any:
    """numpy's, if numpy is loaded: otherwise nothing can be an array."""
    return getattr(sys.modules.get("numpy"), "ndarray", None)


def _array_part(array: Any, buffers: list[memoryview]) -> _Part | None:
    """What stands for an array, whose memory is added to ``buffers``; None if it is not plain."""
    dtype = array.dtype
    name = _NAMES.get(dtype.char)
    if (
        name is None
        or not dtype.isnative
        or dtype.metadata is not None
        or not array.flags.carray  # contiguous, aligned, and writable
        or array.__class__ in dispatch_table  # the user has said how arrays are to be pickled
    ):
        return None
    if array.nbytes < limits.OUT_OF_BAND_BYTES:
        return name, array.shape, array.tobytes()
    buffers.append(PickleBuffer(array).raw())
    return name, array.shape


def _bytes_part(thing: Any, buffers: list[memoryview]) -> _Part | None:
    """Likewise for large bytes."""
    view = memoryview(thing)
    if view.nbytes < limits.OUT_OF_BAND_BYTES:
        return None
    buffers.append(PickleBuffer(view if view.c_contiguous else view.tobytes()).raw())
    return None, thing.__class__ is bytearray


def _otherwise(things: tuple[Any, ...], array_type: Any) -> tuple[()] | None:
    """What `dump` returns for a value that does not go this way."""
    if array_type is not None:
        for thing in things:
            if isinstance(thing, array_type) and thing.nbytes >= limits.OUT_OF_BAND_BYTES:
                flags = thing.flags
                if (
                    type(thing) is not array_type
                    or not flags.writeable
                    or not (flags.c_contiguous or flags.f_contiguous)
                ):
                    return ()
    return None


def rebuild(mark: int, parts: list[Any], buffers: Iterable[Buffer]) -> Any:
    """Undo `dump`: writable arrays over the buffers, which they keep, if the buffers are writable.

    A `memoryview` arrives as `bytes`.

    Args:
        mark: the body's first byte.
        parts: what the pickle behind it says.

    Raises:
        Whatever numpy raises if a buffer is too short for its array.
    """
    ndarray: Any = _array_type()  # 0.2 µs less than an import statement
    data = iter(buffers)
    for number, part in enumerate(parts):
        if part.__class__ is tuple:
            if part[0] is None:
                parts[number] = bytearray(next(data)) if part[1] else bytes(next(data))
                continue
            if ndarray is None:
                from numpy import ndarray
            parts[number] = ndarray(part[1], part[0], next(data) if len(part) == 2 else bytearray(part[2]))
    if mark == 3:
        return tuple(parts), {}
    return tuple(parts) if mark == 2 else parts[0]


__all__ = ["MOST_BYTES", "dump", "rebuild"]
