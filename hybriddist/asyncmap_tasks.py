"""How the calls of an `asyncmap` run: on threads of this process, or on its event loop.

What this module does not know: which items there are, and what becomes of their results (``asyncmaps.py``).
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Set
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from hybriddist.deadline import Deadline
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.process import Process
from hybriddist.runtime.running import Errand, is_coroutine

if TYPE_CHECKING:
    import asyncio

_LOOK_SECONDS: Final = 0.2
"""The waiting caller looks up so often, well within that: it may be such a task itself, of another map."""


class Item:
    """One call under way."""

    __slots__ = ("args", "count", "error", "index", "value")

    def __init__(self, index: int, args: tuple[Any, ...], count: int | None) -> None:
        self.index = index
        self.args = args
        self.count = count
        """How many results it brings, of a batch; None: the value is the one result."""
        self.value: Any = None
        self.error: BaseException | None = None

    def end(self, value: Any) -> None:
        """The function has returned.

        Raises:
            TypeError, ValueError: that is not what it has to return for a batch.
        """
        if self.count is not None:
            if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping | Set):
                raise TypeError(f"for {self.count} items the function must return a list, not {type(value).__name__}")
            if len(value) != self.count:
                raise ValueError(f"for {self.count} items the function returned {len(value)} results")
        self.value = value

    def describe(self, error: BaseException) -> None:
        """Note on an exception where it comes from."""
        which = f"item {self.index}"
        if self.count is not None:
            which = f"items {self.index} to {self.index + self.count - 1}"
        try:
            error.add_note(f"raised for {which} of an asyncmap")
        except Exception:
            pass  # a class of the user's that takes no notes


class Ended:
    """The items that have ended, in that order, and the one thread that waits for them."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._items: deque[Item] = deque()
        self._news = Completion()

    def __bool__(self) -> bool:
        return bool(self._items)

    def note(self, item: Item) -> None:
        """One more, from any thread."""
        self._items.append(item)
        news = self._news
        if not news.done:
            news.complete(0, None)

    def next(self, deadline: Deadline) -> Item | None:
        """Wait for one and take it; None if the deadline comes first."""
        while not self._items:
            if deadline.expired():
                return None
            self._news = news = Completion()
            if not self._items:
                self._process.wait(news, None, deadline.sooner(_LOOK_SECONDS))
        return self._items.popleft()


class Threads:
    """Tasks that are threads, started as they are needed: of a function that blocks."""

    def __init__(self, process: Process, f: Callable[..., Any], ended: Ended) -> None:
        self.stopped = False
        """Whether nothing more is to begin."""
        self._process = process
        self._f = f
        self._ended = ended
        self._context = contextvars.copy_context()
        self._errand: Errand = (None, 0, *process.new_rrid())  # no other is like it: by this they are interrupted
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running: set[Item] = set()

    def begin(self, item: Item, under_way: int) -> None:
        """Run one more; it is one of so many."""
        if under_way > len(self._threads):
            self._start_thread()
        if self._threads:
            self._queue.put(item)
        else:
            self._run(item, self._call)

    def is_running(self) -> bool:
        """Whether calls are under way; once `stopped`, there will be no more than those."""
        return bool(self._running)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in all that run."""
        self._process.executor.interrupt_one(lambda errand: errand is self._errand)

    def close(self) -> None:
        """Let the threads end: now, or after the calls that are still under way, which are not waited for."""
        for _ in self._threads:
            self._queue.put(None)
        if not self._running:
            for thread in self._threads:
                if thread.is_alive():
                    thread.join()

    def _start_thread(self) -> None:
        work = self._process.in_context(self._work)
        thread = threading.Thread(target=work, name="hybriddist-asyncmap", daemon=True)
        self._threads.append(thread)  # first: a Ctrl-C may strike when it has just begun
        try:
            thread.start()
        except RuntimeError:
            self._threads.remove(thread)  # no more are to be had: those that are there will do, or else the caller's

    def _work(self) -> None:
        interruptible = partial(self._process.executor.interruptible, self._errand, self._call)
        while (item := self._queue.get()) is not None:
            self._run(item, interruptible)
            del item  # its arguments live no longer than the call

    def _run(self, item: Item, call: Callable[[Item], None]) -> None:
        self._running.add(item)  # before the look: whoever stops us sees either of the two
        try:
            if not self.stopped:
                call(item)
        except BaseException as error:
            item.error = error
        self._running.discard(item)
        self._ended.note(item)

    def _call(self, item: Item) -> None:
        value = self._context.copy().run(self._f, *item.args)
        if is_coroutine(value):
            value = self._process.coroutines.run(value)
        item.end(value)


class LoopTasks:
    """Tasks on the process's event loop: of an ``async def``."""

    def __init__(self, process: Process, f: Callable[..., Any], ended: Ended) -> None:
        if process.coroutines.is_own_thread():
            raise RuntimeError(
                "asyncmap of an async function would block the event loop that has to run it: "
                "await asyncio.gather(...) instead"
            )
        self.stopped = False
        self._f = f
        self._ended = ended
        self._loop = process.coroutines.loop()
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, item: Item, under_way: int) -> None:
        """Await one more. It inherits the context of the thread that calls this."""
        self._loop.call_soon_threadsafe(self._begin, item)

    def interrupt(self) -> None:
        """Cancel all that run."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            pass  # the loop is closed, and what ran on it was cancelled then

    def is_running(self) -> bool:
        """Whether calls are under way; those that may begin just now are cancelled with them."""
        return bool(self._running)

    def close(self) -> None:
        """Nothing is held: the loop is the process's."""

    def _begin(self, item: Item) -> None:
        if self.stopped:
            self._ended.note(item)
            return
        task = self._loop.create_task(self._call(item))
        self._running.add(task)
        task.add_done_callback(partial(self._end, item))

    async def _call(self, item: Item) -> None:
        try:
            item.end(await self._f(*item.args))
        except BaseException as error:
            item.error = error

    def _end(self, item: Item, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():  # before its first step
            from asyncio import CancelledError

            item.error = CancelledError()
        self._ended.note(item)

    def _cancel(self) -> None:
        for task in self._running:
            task.cancel()
