"""`Loop`: a partitioned loop without a reducer, under way.

It goes on whether or not anybody holds it; so its failures must find somebody to hear them::

    wait, await, a block of sync ──► they are raised there
    dropped without that ──────────► printed on stderr, once: at its end, or when the program ends

Python drops objects at any moment, also in the middle of a print. So whoever drops a loop only leaves a note; a
thread of the library prints. When the program ends there are no such threads any more, and it is printed on the spot.

What this module does not know: where the items come from, and who chose the processes.
"""

from __future__ import annotations

import sys
import threading
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from hybriddist.awaiting import check_callback, run_callback, until_ended
from hybriddist.calls import remotecall
from hybriddist.chunks import cancel, cut, run_chunk, when_ended
from hybriddist.deadline import Deadline
from hybriddist.errors import CompositeException, ProcessExitedException
from hybriddist.folds import chunk_name
from hybriddist.future import Future
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.process import Process


class Loop:
    """What `distributed` returns without a reducer.

    If it is dropped, or the program ends, before anybody has waited for it, its failures are printed on stderr.
    """

    def __init__(self, course: Course) -> None:
        self._course = course
        # For the end of the program only. The registry of finalisers must not hold the course: a failure there may hold
        # frames that hold this loop, which would then live for ever.
        weakref.finalize(self, _drop_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        self._course.drop()

    def wait(self, timeout: float | None = None) -> Loop:
        """Wait until every chunk has ended; the loop itself.

        Raises:
            CompositeException: of the failures, in the order of the chunks: a `RemoteException` or
                `ProcessExitedException` each. Again at each call.
            concurrent.futures.CancelledError: `cancel` has ended it.
            TimeoutError: not within ``timeout`` seconds; nothing is lost or cancelled.
        """
        course = self._course
        if not course.wait(Deadline(timeout)):
            raise TimeoutError(f"the loop did not end within {timeout} seconds")
        course.heard = True
        if course.cancelled:
            from concurrent.futures import CancelledError  # 3 ms, and rarely needed

            raise CancelledError("the loop was cancelled")
        failures = [error for _, error in course.failures()]
        if failures:
            raise CompositeException("chunks of the loop failed", failures)
        return self

    def isready(self) -> bool:
        """Whether every chunk has ended, well or not."""
        return self._course.done.done

    def cancel(self) -> bool:
        """Begin no further chunk, and interrupt those that run, as `Future.cancel` does; whether it is cancelled now.

        Does not wait for the calls to end, nor for answers. `wait` then raises `concurrent.futures.CancelledError`.
        """
        return self._course.cancel()

    def add_done_callback(self, function: Callable[[Loop], Any]) -> None:
        """Call ``function(self)`` when every chunk has ended, on a thread of the library; at once if it has ended."""
        check_callback(function)
        self._course.when_done(partial(run_callback, function, self))

    def __await__(self) -> Generator[Any, None, Loop]:
        """``await loop``: `wait`, without blocking the event loop."""
        if not self.isready():
            yield from until_ended(self)  # type: ignore[arg-type]
        return self.wait()

    def __repr__(self) -> str:
        return f"<Loop of {len(self._course.parts)} chunks, {'ended' if self.isready() else 'under way'}>"

    def __reduce__(self) -> Any:
        raise TypeError("a loop under way cannot be pickled: it belongs to the process that began it")


class Course:
    """How a loop goes on; lives until it has ended, whether or not anybody holds the `Loop`."""

    def __init__(
        self,
        process: Process,
        f: Callable[..., Any],
        items: Any,
        parts: Sequence[range],
        chunked: bool,
    ) -> None:
        self.parts = parts
        self.done = Completion()
        self.heard = False
        """Whether somebody has been told how it ended."""
        self.cancelled = False
        self._process = process
        self._f = f
        self._items = items
        self._chunked = chunked
        self._calls: list[Future | None] = [None] * len(parts)
        self._places: list[int] = [0] * len(parts)
        self._errors: dict[int, Exception] = {}
        """Of chunks that were never sent."""
        self._left: set[int] = set()
        """Chunks that did not come to their ends because the program came to its own, with its workers: no news."""
        self._lock = allocate_lock()
        """Guards the two counts, the waiting chunks and the cancelling."""
        self._waiting = deque(range(len(parts)))
        self._unended = len(parts)
        self._lanes = 0
        """How many processes still get chunks."""
        self._dropped = False
        self._unshown = [None]
        """Whoever takes the one element shows the failures: several may want to, on different threads."""

    # ---- handing out ------------------------------------------------------------------------------------------

    def start(self, pids: Sequence[int]) -> None:
        """Give each process its first chunk.

        Raises:
            SerializeError: the function or a chunk cannot be pickled. What had begun is cancelled.
        """
        if not self.parts:
            self.done.complete(0, None)
            return
        self._process.start()
        self._lanes = len(pids)
        first = deque((self._waiting.popleft(), pid) for pid in pids)
        try:
            while first:
                self._begin(*first.popleft())
        except BaseException:
            self.cancel()
            self._count_down(len(first))
            raise

    def _begin(self, index: int, pid: int) -> None:
        """Give a process a chunk. If it is gone the chunk has failed: nobody else gets it."""
        self._places[index] = pid
        try:
            chunk = cut(self._items, self.parts[index])
            call = self._calls[index] = remotecall(run_chunk, pid, self._f, chunk, None, self._chunked)
        except ProcessExitedException as error:
            self._errors[index] = error
            self._end_lane(error)
            self._count_down(1)
            return
        except BaseException as error:
            if isinstance(error, Exception):
                self._errors[index] = error
            self._count_down(1)
            raise
        if self.cancelled:  # between taking the chunk and knowing the call
            cancel([call])
        when_ended(call, partial(self._ended, index, pid))

    def _ended(self, index: int, pid: int, lost: bool) -> None:
        """A chunk has ended. Called on the thread that receives: it must not block, nor run what users wrote."""
        if lost:
            try:
                self._call(index).fetch()
            except ProcessExitedException as error:
                if _program_ends() or self._process.leaving.is_set():
                    self._left.add(index)
                self._end_lane(error)
        elif self._waiting:
            self._process.executor.submit(partial(self._go_on, pid))
            return
        self._count_down(1)

    def _go_on(self, pid: int) -> None:
        try:
            while not self._began(self._waiting.popleft(), pid):
                pass
        except IndexError:
            pass  # all are given out
        self._count_down(1)

    def _began(self, index: int, pid: int) -> bool:
        try:
            self._begin(index, pid)
        except Exception:
            return False  # it is in `_errors`
        return True

    def _end_lane(self, error: ProcessExitedException) -> None:
        """A process is gone. Chunks that nobody is left for fail with it."""
        with self._lock:
            self._lanes -= 1
            if self._lanes:
                return
            left = list(self._waiting)
            self._waiting.clear()
        if _program_ends() or self._process.leaving.is_set():
            self._left.update(left)
        for index in left:
            self._errors[index] = error
            self._places[index] = error.pid
        self._count_down(len(left))

    def _count_down(self, count: int) -> None:
        with self._lock:
            if not count:
                return
            self._unended -= count
            if self._unended:
                return
        self._items = self._f = None  # type: ignore[assignment]
        self.done.complete(0, None)
        if self._dropped:
            self._show_unless_heard()

    def _call(self, index: int) -> Future:
        call = self._calls[index]
        assert call is not None
        return call

    # ---- waiting and cancelling -------------------------------------------------------------------------------

    def wait(self, deadline: Deadline) -> bool:
        """Wait for the end; False if the deadline came first."""
        return self._process.wait_here(self.done, None, deadline)

    def when_done(self, work: Callable[[], Any]) -> None:
        """Run something on a thread of the library when all has ended; now and here if it has."""
        if self.done.done:
            work()
            return
        process = self._process

        def ended(_: Completion) -> None:
            process.executor.submit(work)

        self.done.add_callback(ended)

    def failures(self) -> list[tuple[int, Exception]]:
        """Of a loop that has ended: which chunks failed, and how, in order."""
        found: list[tuple[int, Exception]] = []
        for index in range(len(self.parts)):
            try:
                if index in self._errors:
                    raise self._errors[index]
                self._call(index).fetch()
            except Exception as error:
                found.append((index, error))
        return found

    def cancel(self) -> bool:
        """See `Loop.cancel`."""
        with self._lock:
            if not self._unended:
                return self.cancelled
            self.cancelled = self.heard = True
            left = len(self._waiting)
            self._waiting.clear()
        cancel(call for call in self._calls if call is not None)
        self._count_down(left)
        return True

    # ---- failures that nobody hears ---------------------------------------------------------------------------

    def drop(self) -> None:
        """Nobody holds the loop any more. Called by the garbage collector: it must neither lock nor print."""
        self._dropped = True
        if self.done.done and not self.heard:
            if _program_ends() or self._process.leaving.is_set():
                self._show_unless_heard()
            else:
                self._process.executor.queue.append(self._show_unless_heard)
                self._process.poller.wake()

    def _show_unless_heard(self) -> None:
        if self.heard or self._process.is_copy:
            return
        try:
            self._unshown.pop()
        except IndexError:
            return
        if _program_ends():
            self._show()
        else:
            self._process.spawn(self._show, "hybriddist-unheard")

    def _show(self) -> None:
        failures = self.failures()
        if self._left.issuperset(index for index, _ in failures) or sys.stderr is None:
            return
        lines = ["hybriddist: a distributed loop failed, and nobody waited for it:"]
        for index, error in failures:
            lines.append(f"{chunk_name(index, self.parts, self._places[index])}:\n{error}")
        print("\n".join(lines), file=sys.stderr, flush=True)


def _drop_at_exit(loop: weakref.ref[Loop]) -> None:
    alive = loop()
    if alive is not None:
        alive._course.drop()


def _program_ends() -> bool:
    """Whether the main thread has run to its end: no thread that is begun now is sure to get anywhere."""
    return not threading.main_thread().is_alive()


__all__ = ["Course", "Loop"]
