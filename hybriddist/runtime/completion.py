"""The end of something that somebody waits for: a call, a request, a value behind a reference.

A completion happens once. Any number of threads may wait for it, and callbacks may be added before or after; each
runs exactly once, on the thread that completes (or on the adding one, when it came too late). No lock is held on the
fast path: the order *set the outcome, set done, then wake* on one side and *register, then look at done* on the
other leaves no gap under the interpreter's own lock, and list.append, list.pop and list.remove are atomic there.

What this module does not know: what the outcome means, and who brings it.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections.abc import Callable
from threading import main_thread
from typing import TYPE_CHECKING, Any

from hybriddist import limits

if TYPE_CHECKING:
    from _thread import LockType

    from hybriddist.deadline import Deadline


class Completion:
    """Something that ends once.

    Attributes:
        done: whether it has ended; set last, so that whoever sees it True may read the rest.
        outcome: a `messages.Outcome`.
        content: what came with it; its meaning is the owner's (a received `Result`, a value, an exception).
        started: whether what is waited for is known to have begun.
    """

    __slots__ = ("__weakref__", "_callbacks", "_waiters", "content", "done", "outcome", "started")

    def __init__(self) -> None:
        self.done = False
        self.started = False
        self.outcome = 0
        self.content: Any = None
        self._waiters: list[LockType] = []
        self._callbacks: list[Callable[[Completion], None]] = []

    def begin(self) -> None:
        """What is waited for is known to have begun."""
        self.started = True

    def complete(self, outcome: int, content: Any) -> None:
        """End it. The caller makes sure that this happens once."""
        self.outcome = outcome
        self.content = content
        self.done = True
        waiters = self._waiters
        while waiters:
            try:
                waiters.pop().release()
            except IndexError:  # a waiter whose time was up took its lock away just now
                break
        callbacks = self._callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                break
            callback(self)

    def wait(self, deadline: Deadline | None = None) -> bool:
        """Block until it has ended or the deadline has come; whether it has ended. Ctrl-C gets through."""
        if self.done:
            return True
        lock = allocate_lock()
        lock.acquire()
        self._waiters.append(lock)
        if self.done:  # it ended before it could see our lock
            return True
        try:
            longest = limits.SIGNAL_LOOK_SECONDS if get_ident() == main_thread().ident else 4e6
            while not self.done:
                remaining = None if deadline is None else deadline.remaining()
                seconds = longest if remaining is None else min(remaining, longest)
                if lock.acquire(timeout=seconds) or (remaining is not None and remaining <= seconds):
                    break
        finally:
            if not self.done:
                try:
                    self._waiters.remove(lock)
                except ValueError:
                    pass  # it ended at this very moment
        return self.done

    def add_callback(self, callback: Callable[[Completion], None]) -> None:
        """Run ``callback(self)`` when it ends, or now if it has."""
        self._callbacks.append(callback)
        if self.done:
            try:
                self._callbacks.remove(callback)
            except ValueError:
                return  # the completing thread took it
            callback(self)

    def remove_callback(self, callback: Callable[[Completion], None]) -> None:
        """Let go of a callback that is not to be run any more; it may be running."""
        try:
            self._callbacks.remove(callback)
        except ValueError:
            pass
