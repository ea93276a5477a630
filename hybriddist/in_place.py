"""`empty`: an array in the place from which a result is sent, so that returning it copies nothing.

::

    worker, inside a call                           whoever asked
    a = hd.empty(...)      a slot of the arena
    a[:] = ...             ┌────────────────┐
    return a ───────────── │ a's bytes stay │ ────► an array over the same slot
                           └────────────────┘
       unless somebody on the worker still has the array, or a part of it: then a copy goes, as of any other array

What this module does not know: when a slot may be given away (`shm/reserved.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybriddist import limits
from hybriddist.runtime.context import known
from hybriddist.runtime.reserving import reserve
from hybriddist.shapes import checked_dtype, checked_shape


def empty(shape: int | Sequence[int], dtype: Any = float) -> np.ndarray[Any, Any]:
    """A new array with arbitrary content, whose return from a call copies nothing. Does not wait for anybody.

    It is an ordinary array, and may be used everywhere. Inside a call from a process of the same node it lies in shared
    memory, in the connection to the caller. When the call returns it, alone or inside another value, the caller gets
    this memory. What others get, and what is not the call's own any more, is copied as any array is: when it is kept
    on the worker (in a variable that outlives the call, as the value of a `Future`, by a view of it) or sent to another
    process. So nobody ever sees what somebody else writes. A part that begins where the array begins, such as
    ``a[:n]``, goes without a copy too; other parts are copied.

    Outside of a call, in a coroutine, over TCP, for arrays below 16 KiB, and when shared memory has no room, the memory
    is ordinary.

    Args:
        shape: an integer, or a sequence of them.
        dtype: whatever numpy takes as one; its elements must be of a fixed size. Default: float64.

    Returns:
        An array in C order, the caller's own. The memory is free again when the last view of the array is gone.

    Raises:
        TypeError: the dtype holds Python objects or has no fixed size, or the shape is none.
        ValueError: a negative shape.
        MemoryError: there is no memory for it.

    Example::

        def squares(n):
            a = hd.empty(n, "i8")
            np.multiply(np.arange(n), np.arange(n), out=a)
            return a

        hd.remotecall_fetch(squares, 2, 1_000_000)[3]     # 9

    Source: numpy's ``empty``; Julia has nothing like it.
    """
    kind = checked_dtype(dtype, "an array that other processes get")
    sides = checked_shape(shape)
    length = math.prod(sides) * kind.itemsize
    process = known()
    memory = reserve(process, length) if process is not None and length >= limits.OUT_OF_BAND_BYTES else None
    if memory is None:
        return np.empty(sides, kind)
    array: np.ndarray[Any, Any] = np.frombuffer(memory, kind).reshape(sides)
    return array


__all__ = ["empty"]
