"""Partitioned loops: `distributed` cuts the items into a few chunks, and each worker has its own.

Each worker folds its chunk from the left; the partial results are folded in the order of the chunks. So a reducer need
be associative only, not commutative, and concatenation comes out in order::

    items    0 1 2 | 3 4 5 | 6 7        longer chunks first, sizes differ by one at most
    worker     2   |   3   |   4
    partial   r2   |  r3   |  r4        each folded where it was computed
    caller    init · r2 · r3 · r4       large ones meet on the workers first (``folds.py``)

With ``schedule="dynamic"`` there are more chunks, of shrinking sizes, for whoever is free. What this module does not
know: how chunks travel and run (``chunks.py``), and how a loop without a reducer goes on (``running_loop.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, Literal, overload

from hybriddist.chunks import cut, run_chunk
from hybriddist.core.partition import shrinking, split_range
from hybriddist.errors import ClusterError, RemoteException
from hybriddist.folds import Reduction
from hybriddist.ids import as_pid
from hybriddist.loop_guard import refuse_on_loop
from hybriddist.placing import by_reference
from hybriddist.running_loop import Course, Loop
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.process import Process
from hybriddist.scopes import joined


class _Missing:
    """No value was given (None is a value)."""

    def __repr__(self) -> str:
        return "<no value>"


_MISSING: Final = _Missing()

_TAKE_SECONDS: Final = 0.1
"""For a worker that is said to be free: the pool may be on another process, and somebody else may be quicker."""

_Reducer = Callable[[Any, Any], Any]


@overload
def distributed(
    f: Callable[..., Any], items: Any, /, *, reduce: _Reducer | None = None, chunked: bool = False,
    init: Any = ..., procs: Sequence[int] | None = None, pool: Any = None,
    schedule: Literal["static", "dynamic"] = "static",
) -> Any: ...  # fmt: skip
@overload
def distributed(
    items: Any, /, *, reduce: _Reducer | None = None, chunked: bool = False,
    init: Any = ..., procs: Sequence[int] | None = None, pool: Any = None,
    schedule: Literal["static", "dynamic"] = "static",
) -> Callable[[Callable[..., Any]], Any]: ...  # fmt: skip
def distributed(
    *what: Any,
    reduce: _Reducer | None = None,
    chunked: bool = False,
    init: Any = _MISSING,
    procs: Sequence[int] | None = None,
    pool: Any = None,
    schedule: Literal["static", "dynamic"] = "static",
) -> Any:
    """Run ``f`` for each item, the items cut into chunks, one for each worker.

    Two spellings::

        total = hd.distributed(f, range(n), reduce=operator.add)

        @hd.distributed(range(n), reduce=operator.add)      # the name is bound to the value
        def total(i): ...

    With ``reduce`` the call blocks. If a chunk fails, so does the whole: the others have half a second to end or to
    fail as well, then they are cancelled, as they are at once by a Ctrl-C. Nobody else does the chunk of a worker that
    dies.

    Args:
        *what: ``f, items`` or, as a decorator, ``items``: a range, a sequence, a numpy array (cut along axis 0), or
            whatever has a length and gives items by position. A process is sent its own chunk only.
        reduce: an associative function of two values. It runs on the workers, and on the calling thread.
        chunked: call ``f`` once per chunk, with the chunk: a slice (of a range a range, of an array a view); a list
            where ``items`` has no slices.
        init: folded in once at the left; the value for no items.
        procs: pids to use; chunk i runs on the i-th. Default: the workers.
        pool: a worker pool instead: as many of its workers as are free, and at least one, which may have to be waited
            for. They are put back at the end.
        schedule: ``"static"`` gives each process one chunk, of equal sizes. ``"dynamic"`` makes several of shrinking
            sizes, for whoever is free.

    Returns:
        With ``reduce`` the value. Without it a `Loop` at once, and a block of `sync` waits for it; if nobody waits for
        it, its failures are printed on stderr.

    Raises:
        ValueError: there are no items and no ``init``.
        RemoteException: (with ``reduce``) of the first chunk, in order, that failed. ``others`` has the further
            failures, and a note names each.
        ProcessExitedException: (with ``reduce``) a worker has died, likewise.
        SerializeError: something cannot be pickled.
        RuntimeError: (with ``reduce``) called with an ``async def`` on the event loop that would have to run it.

    Source: Julia's Distributed, ``@distributed``.
    """
    if len(what) == 1:
        if callable(what[0]):
            raise TypeError("distributed takes a function and items, or items alone as a decorator")
        return lambda f: _run(f, what[0], reduce, chunked, init, procs, pool, schedule)
    if len(what) != 2:
        raise TypeError(f"distributed takes a function and items, not {len(what)} positional arguments")
    return _run(what[0], what[1], reduce, chunked, init, procs, pool, schedule)


def _run(
    f: Callable[..., Any],
    items: Any,
    reduce: _Reducer | None,
    chunked: bool,
    init: Any,
    procs: Sequence[int] | None,
    pool: Any,
    schedule: str,
) -> Any:
    if not callable(f):
        raise TypeError(f"distributed needs a function, not {type(f).__name__}")
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or isinstance(items, Mapping):
        raise TypeError(f"distributed needs a range, a sequence or an array to split, not {type(items).__name__}")
    if reduce is not None and not callable(reduce):
        raise TypeError(f"reduce must be a function of two values, not {type(reduce).__name__}")
    if reduce is None and init is not _MISSING:
        raise TypeError("init is what reduce begins with: give a reduce= as well")
    if schedule not in ("static", "dynamic"):
        raise ValueError(f'schedule must be "static" or "dynamic", not {schedule!r}')
    if procs is not None and pool is not None:
        raise TypeError("distributed takes procs or pool, not both")
    process = current()
    if reduce is not None:
        refuse_on_loop(process, "distributed", f)
    n_items = len(items)
    with ExitStack() as borrowed:
        pids = _processes(process, procs, pool, n_items, borrowed)
        parts = split_range(n_items, len(pids)) if schedule == "static" else shrinking(n_items, len(pids))
        pids = pids[: len(parts)]
        if pids != [process.pid]:
            f = by_reference(process, f)
        if reduce is None:
            course = Course(process, f, items, parts, chunked)
            course.start(pids)
            course.when_done(borrowed.pop_all().close)
            return joined(Loop(course))
        if not parts:
            if init is _MISSING:
                raise ValueError("reduce of no items and no init: there is no value to return")
            return init
        if pids == [process.pid]:  # on this thread, where a Ctrl-C strikes it
            values = _fold_here(process, f, items, parts, reduce, chunked)
        else:
            values = Reduction(process, f, items, parts, pids, reduce, chunked).run()
    return functools.reduce(reduce, values) if init is _MISSING else functools.reduce(reduce, values, init)


def _fold_here(
    process: Process, f: Callable[..., Any], items: Any, parts: Sequence[range], reduce: _Reducer, chunked: bool
) -> list[Any]:
    try:
        return [process.call_here(run_chunk, (f, cut(items, part), reduce, chunked), {}) for part in parts]
    except RemoteException as error:
        error.others = ()  # type: ignore[attr-defined]  # as where there are several processes
        raise


def _processes(
    process: Process, procs: Sequence[int] | None, pool: Any, n_items: int, borrowed: ExitStack
) -> list[int]:
    """Who is to work. Pids of a pool go back to it when ``borrowed`` is closed."""
    if pool is not None:
        return _borrow(pool, n_items, borrowed) if n_items else [process.pid]
    if procs is None:
        return process.membership.workers()
    pids = [as_pid(pid) for pid in procs]
    if not pids:
        raise ValueError("distributed needs at least one process in procs")
    for pid in pids:
        member(process, pid)  # before any chunk is sent
    return pids


def _borrow(pool: Any, at_most: int, borrowed: ExitStack) -> list[int]:
    """At least one worker, and as many more as are free now: to wait for those that others have could be for ever."""
    pids: list[int] = []
    for _ in range(max(1, min(at_most, len(pool)))):
        if not pids:
            pid = pool.take()
        elif not pool.isready():
            break
        else:
            try:
                pid = pool.take(timeout=_TAKE_SECONDS)
            except (TimeoutError, ClusterError):  # somebody else was quicker, or the others are gone
                break
        borrowed.callback(pool.put, pid)
        pids.append(as_pid(pid))
    return pids
