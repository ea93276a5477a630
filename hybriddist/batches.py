"""Batches of a map: what runs on a worker for ``batch_size="auto"``, and how its results come back.

A call costs microseconds at both ends; an item of a map may cost less. So many items go in one call, and their results
come in one answer. Each item is an attempt of its own all the same: its error is its own, and so is a result that
cannot be pickled. A batch that takes longer than it was expected to ends early: what it has not begun goes back, to be
given to whoever is free::

    [a b c d e f g h] ─► run: a b c ✗ e │ time is over ─► Report(5 values, 1 error) ─► f g h are given out again

What this module does not know: how many items a batch has, and who gets it (``mapping.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

from hybriddist.core import captured
from hybriddist.core.packed import pack, unpack
from hybriddist.errors import DeserializeError, HybridDistError, RemoteException
from hybriddist.limits import MIB
from hybriddist.records import Record
from hybriddist.runtime.current import current
from hybriddist.runtime.running import is_coroutine

BUDGET_SECONDS: Final = 0.05
"""After which a batch begins no further item. Batches are made to take less than half of it."""

_MOST_BYTES: Final = 16 * MIB
"""Of results in one answer; a batch that has more ends early too."""

_NUMBERS: Final = frozenset({int, float, bool, type(None), complex})
_CONTAINERS: Final = frozenset({tuple, list, set, frozenset})
_MOST_ELEMENTS: Final = 64


class Packed(Record):
    """A value that was pickled by itself, so that one which cannot be unpickled does not take the others along."""

    data: bytes

    def unpack(self) -> Any:
        """The value.

        Raises:
            DeserializeError: it cannot be unpickled here.
        """
        return unpack(self.data)


class Report(Record):
    """How a batch went."""

    values: list[Any]
    """Of the items that were run, in order."""
    packed: list[int]
    """The positions of values that are `Packed`."""
    errors: dict[int, Any]
    """A `CapturedException` each, by the item's position; its value is None."""


def run_batch(f: Callable[..., Any], items: Sequence[Any], several: bool) -> Report:
    """Run ``f`` for the items, in order, until the time is over.

    An interrupt ends the batch, as an error of the item that it strikes: what has not begun goes back. Whoever does not
    want the batch any more does not look at its report.

    Args:
        several: whether an item is a tuple of arguments, and not the only one.
    """
    values: list[Any] = []
    packed: list[int] = []
    errors: dict[int, Any] = {}
    numbers = _NUMBERS
    size = 0
    end = perf_counter() + BUDGET_SECONDS
    for item in items:
        try:
            value = f(*item) if several else f(item)
            if type(value) not in numbers:
                if is_coroutine(value):
                    value = current().coroutines.run(value)
                value, value_size = _ready(value)
                size += value_size
                if type(value) is Packed:
                    packed.append(len(values))
        except BaseException as error:
            errors[len(values)] = failure = captured.capture(error)
            failure.drop_frames()
            value = None
            if packed and packed[-1] == len(values):
                packed.pop()  # it came when the value was there
            if isinstance(error, KeyboardInterrupt):
                end = 0.0
        values.append(value)
        if perf_counter() > end or size > _MOST_BYTES:
            break
    return Report(values, packed, errors)


def _ready(value: Any) -> tuple[Any, int]:
    """A value as it can go into an answer with others, and about how many bytes it takes there.

    Raises:
        SerializeError: it cannot be pickled. With the others in one pickle it would take them along.
    """
    kind = type(value)
    if kind is str or kind is bytes:
        return value, len(value)
    if kind in _CONTAINERS and len(value) <= _MOST_ELEMENTS and all(type(each) in _NUMBERS for each in value):
        return value, 8 * len(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray and not value.dtype.hasobject:
        return value, int(value.nbytes)
    references = current().references
    before = references.pickled
    data = pack(value)
    # What has references in it is pickled once more, for the process that gets it: each gets claims of its own.
    return (Packed(data) if references.pickled == before else value), len(data)


def open_report(report: Report, pid: int) -> dict[int, HybridDistError]:
    """Put the values of a report that was made on process ``pid`` in the places of those that are packed.

    Returns:
        What went wrong, by position.
    """
    failed: dict[int, HybridDistError] = {
        position: RemoteException(pid, error) for position, error in report.errors.items()
    }
    for position in report.packed:
        try:
            report.values[position] = report.values[position].unpack()
        except DeserializeError as error:
            failed[position] = error
    return failed
