"""A map in this process: on the caller's thread where there are no workers, on several threads if that is asked for.

::

    supply ─► begin ─► queue ─► threads: run ─► ended ─► handle ─► outcomes
      ▲                                                    │
      └────────────── retries, when they are due ──────────┘

The caller reads the items, and hears of their ends. A Ctrl-C, a failure and a time limit are what they are on workers:
what is under way is interrupted, each thread at its next step of Python code. Nobody waits for one that sits in a
blocking call of C: its item has failed, and another thread comes in its place.

What this module does not know: maps on workers.
"""

from __future__ import annotations

import math
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import Any, Final

from hybriddist.core.captured import capture
from hybriddist.core.messages import Outcome
from hybriddist.deadline import Deadline
from hybriddist.errors import RemoteException
from hybriddist.outcomes import Outcomes
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.coroutines import Running
from hybriddist.runtime.process import Process
from hybriddist.runtime.running import Errand, is_coroutine
from hybriddist.supply import Entry, Supply

_LOOK_SECONDS: Final = 0.2
"""The waiting caller looks up so often: it may be such a thread itself, of another map, and be interrupted."""


def iterate_here(
    process: Process, f: Callable[..., Any], items: Iterator[Any], outcomes: Outcomes
) -> Generator[None, None, None]:
    """On the caller's thread, one after the other. It stops after each item."""
    for index, args in enumerate(items):
        while True:
            try:
                value = process.call_here(f, args, {})
            except RemoteException as error:
                delay = outcomes.error(index, error)
                if delay is None:
                    break
                time.sleep(delay)
            else:
                outcomes.value(index, value)
                break
        yield


class _Call:
    """One attempt of an item."""

    __slots__ = ("begun", "dropped", "entry", "errand", "error", "over", "running", "value")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.errand: Errand = (None, 0, 0, entry[0])  # told from others by identity
        self.begun = math.inf
        self.over = False
        self.dropped = False
        """Whether nobody wants its end any more; then it is the last call of its thread."""
        self.running: Running | None = None
        """Of an ``async def``."""
        self.value: Any = None
        self.error: RemoteException | None = None


class ThreadedMap:
    """One map on threads of this process.

    Args:
        f: the function.
        supply: the arguments of each item, as a tuple.
        outcomes: hears of the ends of items.
        threads: how many items may run at once. One more each may wait.
        item_timeout: seconds for an item, from its begin.
    """

    def __init__(
        self,
        process: Process,
        f: Callable[..., Any],
        supply: Supply,
        outcomes: Outcomes,
        threads: int,
        item_timeout: float | None,
    ) -> None:
        self._process = process
        self._f = f
        self._supply = supply
        self._outcomes = outcomes
        self._most_threads = threads
        self._item_timeout = item_timeout
        self._threads = 0
        """How many take calls from the queue."""
        self._started = 0
        """How many threads have to be told when there is nothing more."""
        self._lock = allocate_lock()
        """Whether a call is over or dropped first is decided under it."""
        self._under_way: dict[int, _Call] = {}
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._ended: deque[_Call] = deque()
        self._news = Completion()

    def run(self) -> Generator[None, None, None]:
        """Feed and collect until all is done, with a stop after each item.

        If it fails, or is closed before the end, what is under way is interrupted, and not waited for.
        """
        try:
            while True:
                self._feed()
                if self._under_way:
                    call = self._next(self._seconds_to_wait())
                    if call is not None:
                        self._handle(call)
                    if self._item_timeout is not None:
                        self._end_overdue(self._item_timeout)
                elif self._supply.is_empty():
                    return
                elif not self._supply.is_held_back():
                    # Bounded: one that has just become due is not among those that are waited for.
                    time.sleep(min(max(0.0, self._supply.seconds()), _LOOK_SECONDS))
                    continue
                yield
        finally:
            for call in self._under_way.values():
                self._drop(call)
            for _ in range(self._started):
                self._queue.put(None)

    def _feed(self) -> None:
        while len(self._under_way) < 2 * self._most_threads:
            indices, items = self._supply.take(1)
            if not items:
                break
            call = self._under_way[indices[0]] = _Call((indices[0], items[0]))
            self._queue.put(call)
        while self._threads < min(len(self._under_way), self._most_threads):
            thread = threading.Thread(target=self._process.in_context(self._work), name="hybriddist-map", daemon=True)
            self._started += 1  # first: a Ctrl-C may strike when it has just begun
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                break  # no more are to be had: those that there are will do
            self._threads += 1

    def _seconds_to_wait(self) -> float:
        """Until an item may be over its limit, or a retry is due for which there is room."""
        seconds = _LOOK_SECONDS
        if len(self._under_way) < 2 * self._most_threads:
            seconds = min(seconds, self._supply.seconds())
        if self._item_timeout is not None:
            first = min(call.begun for call in self._under_way.values())
            # One that begins just now wakes nobody: it has the whole limit before it.
            seconds = min(seconds, self._item_timeout + min(0.0, first - time.monotonic()))
        return seconds

    def _next(self, seconds: float) -> _Call | None:
        """Wait for a call that has ended; None if none does within so many seconds."""
        if not self._ended:
            self._news = news = Completion()
            if not self._ended:
                self._process.wait(news, None, Deadline(max(0.0, seconds)))
        return self._ended.popleft() if self._ended else None

    def _handle(self, call: _Call) -> None:
        del self._under_way[call.entry[0]]
        failure, call.error = call.error, None
        if failure is None:
            self._outcomes.value(call.entry[0], call.value)
            return
        try:
            raise failure  # handlers see it being handled
        except RemoteException as error:
            self._failed(call, error)
        finally:
            del failure  # its traceback has this frame in it

    def _failed(self, call: _Call, error: Exception) -> None:
        delay = self._outcomes.error(call.entry[0], error)
        if delay is not None:
            self._supply.again(call.entry, delay)

    def _end_overdue(self, limit: float) -> None:
        latest = time.monotonic() - limit
        for index, call in list(self._under_way.items()):
            if call.begun <= latest and self._drop(call):
                self._threads -= 1
                del self._under_way[index]
                self._failed(call, TimeoutError(f"the item took longer than {limit} seconds"))

    def _drop(self, call: _Call) -> bool:
        """Have a call interrupted, or not begun, and its thread end; False if it is over."""
        with self._lock:
            if call.over:
                return False
            call.dropped = True
        self._process.executor.interrupt_one(lambda errand: errand is call.errand)
        if call.running is not None:
            call.running.interrupt()
        return True

    # ---- on the threads ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        process = self._process
        while (call := self._queue.get()) is not None and not call.dropped:
            try:
                process.executor.interruptible(call.errand, self._run, call)
            except BaseException as error:
                call.error = RemoteException(process.pid, capture(error))
            with self._lock:
                call.over = True
                if call.dropped:
                    return
            self._ended.append(call)
            del call  # its arguments live no longer than the call
            news = self._news
            if not news.done:
                news.complete(0, None)

    def _run(self, call: _Call) -> None:
        call.begun = time.monotonic()
        value = self._f(*call.entry[1])
        if is_coroutine(value):
            call.running = running = self._process.coroutines.start(value)
            if call.dropped:
                running.interrupt()
            running.end.wait()
            value = running.end.content
            if running.end.outcome == Outcome.ERROR:
                raise value
        call.value = value
