"""Shapes and dtypes as users give them, checked: for arrays whose memory is not numpy's own.

What this module does not know: where that memory is.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def checked_dtype(dtype: Any, what: str) -> np.dtype[Any]:
    """The dtype, if its elements mean something to other processes.

    Args:
        what: what it is for, with its article, for the error's text.

    Raises:
        TypeError: it holds Python objects or has no size of its own, or is no dtype.
    """
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.hasobject or kind.char == "T":  # numpy's strings of any length
        raise TypeError(
            f"{what} of dtype {kind} is impossible: its elements are pointers to objects of one process. "
            "Use numbers, dates, strings of a fixed length (such as 'U20'), or records of these"
        )
    if kind.subdtype is not None or not kind.itemsize:
        raise TypeError(f"{what} needs a dtype with a size of its own, not {kind}: put its shape into shape")
    return kind


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape as a tuple of plain integers.

    Raises:
        TypeError: it is neither an integer nor a sequence of integers.
        ValueError: a side is negative, or there are more than 32.
    """
    try:
        sides = (operator.index(shape),) if hasattr(shape, "__index__") and np.ndim(shape) == 0 else tuple(
            operator.index(side) for side in shape
        )  # fmt: skip
    except TypeError:
        raise TypeError(f"shape must be an integer or a sequence of integers, not {shape!r}") from None
    if any(side < 0 for side in sides):
        raise ValueError(f"the shape {sides} has a negative side")
    if len(sides) > 32:
        raise ValueError(f"a shape has at most 32 sides, not {len(sides)}")
    return sides
