"""`asyncmap`: apply a function that waits (for the network, for files, for workers) to many items at once, here.

The caller's thread reads the items and collects what has ended; tasks run the function. A task is a thread of this
process, or, for an ``async def``, a task on the process's event loop::

    items ─► feed ─► under way, ntasks at most ─► ended ─► collect ─► results in input order
              ▲       thread, thread, ... or loop            │
              └──────────────────────────────────────────────┘

An item is read when a task is free for it, and not before. When something fails nothing more is read, and what is
under way comes to its own end. A Ctrl-C interrupts it.

What this module does not know: workers (``maps.py``), and how the tasks run (``asyncmap_tasks.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from hybriddist.asyncmap_tasks import Ended, Item, LoopTasks, Threads
from hybriddist.deadline import NEVER, Deadline
from hybriddist.ids import as_whole
from hybriddist.outcomes import common_length, common_shape, flat, in_shape
from hybriddist.retrying import is_async
from hybriddist.runtime.current import current

_MOST_BY_DEFAULT: Final = 100

_GRACE_SECONDS: Final = 0.5
"""For interrupted tasks to end before a Ctrl-C is raised: one that sits in a blocking call of C does not hear of it."""


def asyncmap(
    f: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    ntasks: int | Callable[[], int] | None = None,
    batch_size: int | None = None,
) -> Any:
    """``[f(x) for x in iterable]`` with many calls at once in this process; of several iterables elementwise.

    For functions that wait. Those that compute get no faster by it: that is what `pmap` is for.

    Args:
        f: called on threads of this process, so it needs no pickling; an ``async def`` is awaited on the process's
            event loop. It runs in a copy of the caller's context (`contextvars`).
        *iterables: read on the calling thread, one item whenever a task is free for it; as long as the shortest. A
            numpy array gives an array of the same shape.
        ntasks: how many calls may be under way at once, or a function that says so, asked before each item is read.
            Default: as many as there are items, 100 at most, and 100 if their number is not known.
        batch_size: call ``f`` with a list of so many items (the last one may be shorter), each a tuple of arguments;
            it returns a list of as many results.

    Returns:
        A list in input order. It blocks until all is done.

    Raises:
        BaseException: the first that a call raised, itself, with a note that says which item it was. No more items are
            begun then, and those under way come to their ends first. Other than an `Exception`, a Ctrl-C say, it waits
            for them half a second at most: threads are interrupted, at their next step of Python code, and coroutines
            are cancelled.
        TypeError, ValueError: a bad argument, a bad answer of ``ntasks``, or ``f`` does not return such a list.
        RuntimeError: called with an ``async def`` on the event loop that would have to run it.

    Example::

        pages = hd.asyncmap(download, urls, ntasks=8)

    Source: Julia's ``asyncmap``.
    """
    if not callable(f):
        raise TypeError(f"asyncmap needs a function, not {type(f).__name__}")
    if not iterables:
        raise TypeError("asyncmap needs at least one iterable")
    if batch_size is not None:
        batch_size = _count("batch_size", batch_size)
    limit = _limit(ntasks, iterables)
    shape = common_shape(iterables)
    items = zip(*(flat(iterable) for iterable in iterables), strict=False)
    process = current()
    ended = Ended(process)
    tasks = (LoopTasks if is_async(f) else Threads)(process, f, ended)
    results = _AsyncMap(tasks, _numbered(items, batch_size), limit, ended).run()
    return results if shape is None else in_shape(results, shape)


def _count(name: str, value: Any) -> int:
    count = as_whole(value)
    if count is None:
        raise TypeError(f"{name} must be a whole number of 1 and more, not {type(value).__name__}")
    if count < 1:
        raise ValueError(f"{name} must be a whole number of 1 and more, not {count}")
    return count


def _limit(ntasks: int | Callable[[], int] | None, iterables: Sequence[Any]) -> Callable[[], int]:
    """A function that says how many calls may be under way now."""
    if callable(ntasks):
        return partial(_asked, ntasks)
    if ntasks is None:
        length = common_length(iterables)
        ntasks = _MOST_BY_DEFAULT if length is None else min(_MOST_BY_DEFAULT, max(1, length))
    return partial(int, _count("ntasks", ntasks))


def _asked(ntasks: Callable[[], int]) -> int:
    return _count("what ntasks returns", ntasks())


def _numbered(items: Iterator[tuple[Any, ...]], size: int | None) -> Iterator[Item]:
    if size is None:
        for index, args in enumerate(items):
            yield Item(index, args, None)
        return
    first = 0
    while batch := list(itertools.islice(items, size)):
        yield Item(first, (batch,), len(batch))
        first += len(batch)


class _AsyncMap:
    """One `asyncmap`: what the calling thread does."""

    def __init__(
        self, tasks: Threads | LoopTasks, items: Iterator[Item], limit: Callable[[], int], ended: Ended
    ) -> None:
        self._tasks = tasks
        self._items = items
        self._limit = limit
        self._ended = ended
        self._under_way = 0
        self._results: list[Any] = []

    def run(self) -> list[Any]:
        """Feed and collect until all is done, or something fails."""
        tasks = self._tasks
        try:
            try:
                self._feed()
            except Exception:
                tasks.stopped = True
                while self._under_way:
                    self._end_unseen(NEVER)
                raise
        except BaseException as error:
            if not isinstance(error, Exception):  # also one that struck while the others came to their ends
                tasks.stopped = True
                tasks.interrupt()
                deadline = Deadline(_GRACE_SECONDS)
                # Not by the count: the interrupt may have come between an item's beginning and its being counted.
                while tasks.is_running() and self._end_unseen(deadline):
                    pass
            raise
        finally:
            tasks.close()
        return self._results

    def _feed(self) -> None:
        while True:
            while self._ended or self._under_way >= self._limit():
                self._collect()
            item = next(self._items, None)
            if item is None:
                break
            self._results += [None] * (item.count or 1)
            self._under_way += 1
            try:
                self._tasks.begin(item, self._under_way)
            except Exception:
                self._under_way -= 1
                raise
            del item
        while self._under_way:
            self._collect()

    def _collect(self) -> None:
        """Wait for an item's end.

        Raises:
            BaseException: what it raised.
        """
        item = self._ended.next(NEVER)
        assert item is not None
        self._under_way -= 1
        error, item.error = item.error, None
        if error is not None:
            item.describe(error)
            try:
                raise error
            finally:
                del error  # its traceback has this frame in it
        if item.count is None:
            self._results[item.index] = item.value
        else:
            self._results[item.index : item.index + item.count] = item.value

    def _end_unseen(self, deadline: Deadline) -> bool:
        """Wait for an item's end when something has failed: what it brings is dropped; False if the time was over."""
        item = self._ended.next(deadline)
        if item is None:
            return False
        self._under_way -= 1
        item.error = None  # with its traceback, which has the item in it
        return True
