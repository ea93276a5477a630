"""Partitioned loops: `distributed` splits the work once, in equal parts, one part a worker.

Each worker folds its own part from the left; the caller folds the partial results in the order of the parts. So a
reducer need be associative only, not commutative, and concatenation comes out in order::

    items    0 1 2 | 3 4 5 | 6 7        longer parts first, sizes differ by one at most
    worker     2   |   3   |   4
    partial   r2   |  r3   |  r4        each folded where it was computed
    caller    init · r2 · r3 · r4

For many small and uneven items `pmap` is the better tool: it balances the load, this does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, overload

from hybriddist.calls import remotecall
from hybriddist.core.partition import split_range
from hybriddist.deadline import Deadline
from hybriddist.errors import CompositeException, HybridDistError
from hybriddist.future import Future
from hybriddist.ids import as_pid
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.scopes import joined


class _Missing:
    """No value was given (None is a value)."""

    def __repr__(self) -> str:
        return "<no value>"


_MISSING: Final = _Missing()


class Loop:
    """A partitioned loop without a reducer, under way. What `distributed` returns then."""

    def __init__(self, futures: Sequence[Future]) -> None:
        self._futures = list(futures)

    def wait(self, timeout: float | None = None) -> Loop:
        """Wait until every part is done; the loop itself.

        Raises:
            CompositeException: of the failures, in the order of the parts.
            TimeoutError: not within ``timeout`` seconds.
        """
        deadline = Deadline(timeout)
        failures: list[Exception] = []
        for future in self._futures:
            try:
                future.wait(deadline.remaining())
            except HybridDistError as error:
                failures.append(error)
        if failures:
            raise CompositeException("parts of the loop failed", failures)
        return self

    def isready(self) -> bool:
        """Whether every part is done."""
        return all(future.isready() for future in self._futures)


@overload
def distributed(
    f: Callable[..., Any], items: Any, /, *, reduce: Callable[[Any, Any], Any] | None = None, chunked: bool = False,
    init: Any = ..., procs: Sequence[int] | None = None,
) -> Any: ...  # fmt: skip
@overload
def distributed(
    items: Any, /, *, reduce: Callable[[Any, Any], Any] | None = None, chunked: bool = False,
    init: Any = ..., procs: Sequence[int] | None = None,
) -> Callable[[Callable[..., Any]], Any]: ...  # fmt: skip
def distributed(
    *what: Any,
    reduce: Callable[[Any, Any], Any] | None = None,
    chunked: bool = False,
    init: Any = _MISSING,
    procs: Sequence[int] | None = None,
) -> Any:
    """Run ``f`` for each item, the items split once among the workers.

    Two spellings::

        total = hd.distributed(f, range(n), reduce=operator.add)

        @hd.distributed(range(n), reduce=operator.add)      # the name is bound to the value
        def total(i): ...

    Args:
        *what: ``f, items`` or, as a decorator, ``items``: a range, a sequence, a numpy array (split along axis 0).
        reduce: an associative function of two values. With it the call blocks and returns the value; without it,
            a waitable is returned at once, and a block of `sync` waits for it.
        chunked: call ``f`` once per part, with the part (a range, a slice, a view).
        init: folded in once at the left; the value for no items.
        procs: pids to use; part i runs on the i-th. Default: the workers.

    Raises:
        ValueError: there are no items and no ``init``.
        RemoteException: of the first part, in order, that failed.

    Source: Julia's Distributed, ``@distributed``.
    """
    if len(what) == 1:
        if callable(what[0]):
            raise TypeError("distributed takes a function and items, or items alone as a decorator")
        return lambda f: _run(f, what[0], reduce, chunked, init, procs)
    if len(what) != 2:
        raise TypeError(f"distributed takes a function and items, not {len(what)} positional arguments")
    return _run(what[0], what[1], reduce, chunked, init, procs)


def _run(
    f: Callable[..., Any],
    items: Any,
    reduce: Callable[[Any, Any], Any] | None,
    chunked: bool,
    init: Any,
    procs: Sequence[int] | None,
) -> Any:
    if not callable(f):
        raise TypeError(f"distributed needs a function, not {type(f).__name__}")
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or isinstance(items, dict):
        raise TypeError(f"distributed needs a range, a sequence or an array to split, not {type(items).__name__}")
    if reduce is not None and not callable(reduce):
        raise TypeError(f"reduce must be a function of two values, not {type(reduce).__name__}")
    process = current()
    pids = [as_pid(pid) for pid in procs] if procs is not None else process.membership.workers()
    if not pids:
        raise ValueError("distributed needs at least one process in procs")
    if procs is not None:
        for pid in pids:
            member(process, pid)  # before any part is sent
    parts = split_range(len(items), len(pids))
    if reduce is not None and not parts:
        if init is _MISSING:
            raise ValueError("reduce of no items and no init: there is no value to return")
        return init
    futures = [
        remotecall(_run_part, pid, f, items[part.start : part.stop], reduce, chunked)
        for pid, part in zip(pids, parts, strict=False)
    ]
    if reduce is None:
        return joined(Loop(futures))
    values = [future.fetch() for future in futures]
    return functools.reduce(reduce, values) if init is _MISSING else functools.reduce(reduce, values, init)


def _run_part(f: Callable[..., Any], part: Any, reduce: Callable[[Any, Any], Any] | None, chunked: bool) -> Any:
    """One worker's share: fold from the first item, without an identity element."""
    if chunked:
        value = f(part)
        return None if reduce is None else value
    if reduce is None:
        for item in part:
            f(item)
        return None
    return functools.reduce(reduce, map(f, part))
