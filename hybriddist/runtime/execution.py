"""Running calls: the queue between receiving and executing, and the threads that execute.

Calls and requests are queued in the order in which they were received. A worker's main thread takes them one by one;
when it is held up (or in a process without such a thread) executor threads do. The library's own chores, which may
block, are for executor threads only::

    dispatch ──► queue ──┬─► main thread of a worker (receiver.serve)
                         └─► executor threads: woken or started by `kick`
    submit ────► chores ────►

A free main thread is left its calls, also by an executor thread that looks for work just then: signals, and so
interrupts of what blocks, reach no other thread.

A blocked call must never block later ones, and nobody can tell a blocked call from a busy one. So threads are added
while the queue makes no progress: one at once, then doubling with every look that finds the queue stuck. Threads that
find nothing to do wait a few seconds for more and then end.
"""

from __future__ import annotations

import gc
import sys
import threading
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from hybriddist.runtime.signals import leave_to_main_thread, take_as_usual

if TYPE_CHECKING:
    from _thread import LockType
    from types import FrameType

    from hybriddist.runtime.process import Process
    from hybriddist.runtime.running import Errand

MAX_THREADS = 2048
"""Executor threads of one process. More blocked calls than that wait their turn."""

_LINGER_SECONDS = 5.0
"""An executor thread that has found no work for so long ends."""

_STRIKE_SECONDS = 0.001
"""After which a thread that must not be interrupted just now is looked at again."""

_STUCK_SECONDS = 0.001
_PACE_SECONDS = 0.0002
"""Between two starts of threads: while the same item heads the queue, and while the queue moves (calls of a few
microseconds must not each start a thread)."""


class Executor:
    """Runs queued work; a work item is a callable without arguments."""

    def __init__(self, process: Process) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        self._process = process
        self._idle: deque[LockType] = deque()
        self._threads = 0
        self._threads_lock = allocate_lock()
        self._stuck_at = 0
        """The id of the item that headed the queue at the last look. Not the item: that would keep arguments alive."""
        self._started_at = 0.0
        self._allowance = 1
        self._closed = False
        self._interruptible: dict[int, Errand] = {}
        """The threads that run user code now, whom an interrupt has to reach, by ident: and what for."""
        self._interrupt_lock = RLock()  # a signal's handler strikes too, also in the middle of a strike

    def run(self, work: Callable[[], None]) -> None:
        """Run one item on this thread; a failure in the library itself is shown, not raised."""
        try:
            work()
        except BaseException:  # our own bug, or an interrupt at a bad moment; the thread has to go on
            try:
                print("hybriddist: internal error while running a call", file=sys.stderr)
                import traceback  # 3 ms of a worker's start

                traceback.print_exc()
            except BaseException:
                pass  # stderr is closed, or the text of the user's exception cannot be had

    def submit(self, work: Callable[[], None]) -> None:
        """See that one item is run by an executor thread."""
        self._chores.append(work)
        self.kick()

    def wants_threads(self) -> bool:
        """Whether something is queued that executor threads are to run."""
        return bool(self._chores) or (bool(self.queue) and self._process.receiver.others_are_needed())

    def kick(self) -> None:
        """See that somebody runs what is queued: wake an idle thread, or start some if the queue is stuck."""
        queue = self._chores or self.queue
        try:
            head = queue[0]
        except IndexError:
            return
        try:
            self._idle.popleft().release()
            return
        except IndexError:
            pass
        now = monotonic()
        stuck = id(head) == self._stuck_at
        if now - self._started_at < (_STUCK_SECONDS if stuck else _PACE_SECONDS):
            self._process.poller.wake()  # the receiver looks again soon, with the queue in its mind
            return
        self._started_at = now
        self._stuck_at = id(head)
        self._allowance = min(self._allowance * 2, 64) if stuck else 1
        for _ in range(min(self._allowance, len(queue))):
            if not self._start_thread():
                return

    def close(self) -> None:
        """Let idle threads end; running calls go on."""
        self._closed = True
        self.forget()
        while self._idle:
            try:
                self._idle.popleft().release()
            except IndexError:
                break

    def forget(self) -> None:
        """Drop what is queued."""
        self.queue.clear()
        self._chores.clear()

    def _start_thread(self) -> bool:
        with self._threads_lock:
            if self._threads >= MAX_THREADS or self._closed:
                return False
            self._threads += 1
        try:
            threading.Thread(
                target=self._process.in_context(self._work), name="hybriddist-executor", daemon=True
            ).start()
        except RuntimeError:  # no more threads to be had; those that are there will come round to it
            with self._threads_lock:
                self._threads -= 1
            return False
        return True

    def _work(self) -> None:
        try:
            while not self._closed:
                work = self._take()
                if work is not None:
                    self.run(work)
                    del work  # a call's arguments live no longer than the call
                elif not self._linger():
                    return
        finally:
            with self._threads_lock:
                self._threads -= 1

    def _take(self) -> Callable[[], None] | None:
        """The next item that is for executor threads."""
        try:
            if self._chores:
                return self._chores.popleft()
            if self.queue and self._process.receiver.others_are_needed():
                return self.queue.popleft()
        except IndexError:
            pass  # another thread was sooner, and looks again
        return None

    def _linger(self) -> bool:
        """Wait for work; False when there was none for a while."""
        lock = allocate_lock()
        lock.acquire()
        self._idle.append(lock)
        if self._closed or self.wants_threads():
            lock.acquire(False)
        elif lock.acquire(timeout=_LINGER_SECONDS):
            return True
        try:
            self._idle.remove(lock)
        except ValueError:
            return True  # woken at this moment: the work is ours to look for
        return self.wants_threads() and not self._closed

    def interrupt_threads(self) -> None:
        """Raise KeyboardInterrupt in the threads that run user code, each at its next bytecode."""
        self.interrupt_one(lambda _: True)

    def interrupt_one(self, is_meant: Callable[[Errand], bool]) -> None:
        """Likewise in those threads only whose errand is meant.

        A thread that moves a frame at this moment is left alone, and tried again a little later: in the middle of that
        the exception would break the connection. So is one that imports: Python's own code would keep the lock of the
        module for ever, and every later import of it would wait.
        """
        meant = [(ident, errand) for ident, errand in list(self._interruptible.items()) if is_meant(errand)]
        if meant:
            later = self._strike(meant)
            if later:
                self._process.spawn(lambda: self._strike_again(later), "hybriddist-interrupt")

    def _strike(self, threads: list[tuple[int, Errand]]) -> list[tuple[int, Errand]]:
        """Interrupt threads that are still at these errands; those that have to be tried again."""
        import ctypes  # costs 10 ms to import; interrupts are rare

        later = []
        guard = self._process.guard
        with self._interrupt_lock:
            for ident, errand in threads:
                if self._interruptible.get(ident) is not errand:
                    continue
                number, interrupt = ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt)
                frame = _current_frames().get(ident)
                if guard.must_wait(frame) or guard.is_importing(frame):
                    later.append((ident, errand))
                else:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, interrupt)
        return later

    def _strike_again(self, threads: list[tuple[int, Errand]]) -> None:
        """Ends with the errands, if not before."""
        while threads and not self._closed:
            sleep(_STRIKE_SECONDS)
            threads = self._strike(threads)

    def errand(self) -> Errand | None:
        """What the calling thread is at, if it is one of ours that runs user code."""
        return self._interruptible.get(threading.get_ident())

    def interruptible(self, errand: Errand, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(*args)`` so that `interrupt_threads` reaches it, and nothing that comes after it."""
        ident = threading.get_ident()
        take_as_usual()
        try:
            with self._interrupt_lock:
                self._interruptible[ident] = errand
            return function(*args)
        finally:
            leave_to_main_thread()
            with self._interrupt_lock:
                self._interruptible.pop(ident, None)
            # An exception that was set while we waited for the lock strikes at a loop's jump: here, and not later in
            # the middle of writing the result to the peer.
            for _ in range(3):
                pass


def _current_frames() -> dict[int, FrameType]:
    """The innermost frame of every thread.

    Python 3.11 holds a lock of its own meanwhile, which a starting thread needs; a finaliser that the collector runs in
    there may let go of the interpreter, to that thread: then nothing moves any more. So it must not collect.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if collects:
            gc.enable()


def call_in_user_code(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # exposed
    """The one frame below which user code runs: interrupts are let through here."""
    return function(*args, **kwargs)
