"""Names for processes and references."""

from __future__ import annotations

import operator
from typing import Any, Final

from hybriddist.records import Record

DRIVER: Final = 1
"""The pid of the driver: the process that adds and removes workers."""


class RRID(Record):
    """The identity of a remote reference, unique in the cluster.

    ``whence`` is the pid of the process that created the reference, ``id`` a number unique there. Where the value
    lives is not part of the identity (``reference.where``).
    """

    whence: int
    id: int


def as_whole(value: Any) -> int | None:
    """``value`` as an int if it is an integer of any kind (numpy's too) and no truth value; None if not."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array has it, and only some can
        return None


def as_pid(value: Any) -> int:
    """``value`` as a pid: integers of every kind (numpy's too) are, truth values are not.

    Raises:
        TypeError: it is no integer.
    """
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"a pid is an integer, not {type(value).__name__}")
    return operator.index(value)
