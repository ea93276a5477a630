"""The event loop on which a process awaits what its calls' ``async def`` functions return, and those of `asyncmap`.

One loop on one thread, made when the first coroutine comes: most processes never see one, and asyncio takes 30 ms to
import. It is imported on that thread, where no Ctrl-C strikes: a package that is half imported stays broken.

What this module does not know: how calls come, and what their end is good for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core.messages import Outcome
from hybriddist.runtime.completion import Completion

if TYPE_CHECKING:
    import asyncio

_CLOSE_SECONDS = 1.0
"""For coroutines to end when they are cancelled."""

_REMEMBERED: Final = 1024
"""Calls that were cancelled lately: one of them may have returned its coroutine just now, which has yet to begin."""


class Running:
    """A coroutine under way.

    Attributes:
        end: completed, on the loop's thread, when it has ended: with VALUE and its value, or ERROR and the exception.
        kept: whether its value is kept under a reference, so that others than its asker may want it.
    """

    __slots__ = ("_interrupted", "_loop", "_task", "end", "kept")

    def __init__(self, loop: asyncio.AbstractEventLoop, kept: bool) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False
        self.end = Completion()
        self.kept = kept

    def interrupt(self) -> None:
        """`cancel` by a Ctrl-C: its end is a KeyboardInterrupt, as that of plain code."""
        self._interrupted = True
        self.cancel()

    def cancel(self) -> None:
        """Raise asyncio's CancelledError where it awaits. Never blocks, and may be called by a signal handler.

        It ends when it has cleaned up, not before. One that goes on in spite of it goes on, as plain code does that
        ignores a KeyboardInterrupt; its end is then what it makes of it.
        """
        if self.end.done:
            return
        try:
            self._loop.call_soon_threadsafe(self._cancel)  # after `_begin`, which went the same way
        except RuntimeError:
            pass  # the loop is closed: it has ended

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Let the loop begin with it."""
        try:
            self._loop.call_soon_threadsafe(self._begin, coroutine)
        except RuntimeError:  # the loop is closed: this process is leaving
            coroutine.close()
            self.give_up()

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Runs on the loop, like what follows."""
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.give_up()
        elif (error := task.exception()) is not None:
            self.end.complete(Outcome.ERROR, error)
        else:
            self.end.complete(Outcome.VALUE, task.result())

    def give_up(self) -> None:
        """It has been cancelled, or has not ended by itself when the process did."""
        from concurrent.futures import CancelledError  # 3 ms; few need it

        if not self.end.done:
            error = KeyboardInterrupt() if self._interrupted else CancelledError()
            self.end.complete(Outcome.ERROR, error)


class Tasks:
    """The coroutines that the calls of one asker are at.

    No lock: who begins one puts it here first and looks then whether it is unwanted; who does not want it leaves word
    first and looks then whether it is here. One of the two sees the other.
    """

    __slots__ = ("_asker_gone", "_by_call", "_unwanted")

    def __init__(self) -> None:
        self._by_call: dict[int, Running] = {}
        self._unwanted: deque[int] = deque(maxlen=_REMEMBERED)
        self._asker_gone = False

    def add(self, call_id: int, running: Running) -> None:
        """A call has returned a coroutine, which has begun."""
        self._by_call[call_id] = running
        running.end.add_callback(partial(self._remove, call_id))
        if call_id in self._unwanted or (self._asker_gone and not running.kept):
            running.cancel()

    def cancel(self, call_id: int) -> bool:
        """A call is not wanted any more: whether it is at a coroutine. If it returns one later, that is cancelled."""
        self._unwanted.append(call_id)
        running = self._by_call.get(call_id)
        if running is not None:
            running.cancel()
        return running is not None

    def asker_gone(self) -> None:
        """Cancel those whose value nobody else can want."""
        self._asker_gone = True
        for running in list(self._by_call.values()):
            if not running.kept:
                running.cancel()

    def _remove(self, call_id: int, _: Completion) -> None:
        self._by_call.pop(call_id, None)


class Coroutines:
    """Runs coroutines side by side.

    Args:
        spawn: runs a function on a thread of its own, with a name.
    """

    def __init__(self, spawn: Callable[[Callable[[], None], str], threading.Thread]) -> None:
        self._spawn = spawn
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._under_way: set[Running] = set()
        """The loop itself does not keep its tasks alive."""

    def start(self, coroutine: Coroutine[Any, Any, Any], *, kept: bool = False) -> Running:
        """Begin to await a coroutine; ``kept``: see `Running`."""
        running = Running(self.loop(), kept)
        self._under_way.add(running)
        running.end.add_callback(lambda _: self._under_way.discard(running))
        running.start(coroutine)
        return running

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs from the first question on."""
        if self._loop is None:
            made: SimpleQueue[BaseException | None] = SimpleQueue()
            self._spawn(partial(self._make_and_run, made), "hybriddist-asyncio")
            error = made.get()
            if error is not None:
                raise error
        assert self._loop is not None
        return self._loop

    def is_own_thread(self) -> bool:
        """Whether this is the loop's thread: then whoever blocks would wait for itself."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine from plain code: block until it has ended. A Ctrl-C cancels it, and is raised at once.

        Raises:
            RuntimeError: called from a coroutine on the loop itself, which would wait for itself for ever.
        """
        if self.is_own_thread():
            coroutine.close()
            raise RuntimeError(
                "a coroutine cannot block until another one of its process has ended: await remotecall(...) instead"
            )
        running = self.start(coroutine)
        try:
            running.end.wait()
        except BaseException:
            running.cancel()
            raise
        if running.end.outcome == Outcome.ERROR:
            raise running.end.content
        return running.end.content

    def interrupt_all(self) -> None:
        """Interrupt what is under way. Never blocks, and may be called by a signal handler."""
        for running in self._under_way.copy():
            running.interrupt()

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        if self._closing:
            return
        self._closing = True
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            if self._thread is not threading.current_thread():
                self._thread.join(_CLOSE_SECONDS)

    def _make_and_run(self, made: SimpleQueue[BaseException | None]) -> None:
        """The loop's thread, unless another one, begun at the same time, has been first."""
        try:
            import asyncio

            with self._lock:
                is_first = self._loop is None
                if is_first:
                    self._thread = threading.current_thread()
                    self._loop = asyncio.new_event_loop()
        except BaseException as error:
            made.put(error)
            return
        made.put(None)
        if is_first:
            self._run()

    def _run(self) -> None:
        import asyncio

        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            while not self._closing:
                try:
                    loop.run_forever()
                except (SystemExit, KeyboardInterrupt):
                    pass  # of one coroutine, whose future has it; the others go on
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=_CLOSE_SECONDS))
        finally:
            loop.close()
            for running in self._under_way.copy():
                running.give_up()  # it ignores that it is cancelled; whoever waits for it must not wait for ever
