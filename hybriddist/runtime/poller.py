"""Waiting for many descriptors at once, and being woken from another thread.

A thin layer over epoll, because `selectors` costs 2-4 µs a call in Python and `watch` is on the path of every TCP
call; elsewhere `selectors` does. One thread polls at a time (the caller sees to that); the other methods may be called
from any thread meanwhile, and with `close` they take turns: a system call that had read the number of a poller just
closed would reach the next file of that number, such as another poller's epoll, which then forgot a descriptor.
"""

from __future__ import annotations

import os
import select
import selectors
from _thread import RLock
from typing import Any, Protocol

READ = 1
WRITE = 4  # the values of EPOLLIN and EPOLLOUT


class Source(Protocol):
    """Something with a descriptor, told when it is ready."""

    def on_ready(self) -> None: ...


class Poller:
    """Sources by descriptor. It has descriptors of its own from `open` to `close`."""

    def __init__(self) -> None:
        self._sources: dict[int, Source] = {}
        self._lock = RLock()  # a finaliser may wake whoever it interrupts
        self._epoll: Any = None
        self._selector: Any = None
        self._wake_read = self._wake_write = -1
        self._woken = True  # nobody polls yet
        self._closed = False

    def open(self) -> None:
        """Make ready for `poll`. Idempotent; the first `add` does it too."""
        with self._lock:
            if self._wake_read >= 0 or self._closed:
                return
            if hasattr(os, "eventfd"):
                self._wake_read = self._wake_write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            else:
                self._wake_read, self._wake_write = os.pipe()
                os.set_blocking(self._wake_read, False)
                os.set_blocking(self._wake_write, False)
            if hasattr(select, "epoll"):
                self._epoll = select.epoll()
            else:
                self._selector = selectors.DefaultSelector()
            self._register(self._wake_read, READ)
            self._woken = False

    def add(self, descriptor: int, source: Source, mask: int = READ) -> None:
        """Poll ``descriptor`` for ``source`` from now on."""
        self.open()
        with self._lock:
            if not self._closed:
                self._sources[descriptor] = source
                self._register(descriptor, mask)

    def watch(self, descriptor: int, mask: int) -> None:
        """Change what is waited for; 0 for nothing."""
        with self._lock:
            if self._epoll is not None:
                try:
                    self._epoll.modify(descriptor, mask)
                except OSError:
                    pass  # removed by another thread just now
            elif self._selector is not None:
                registered = descriptor in self._selector.get_map()
                if not mask:
                    if registered:
                        self._selector.unregister(descriptor)
                elif registered:
                    self._selector.modify(descriptor, _selector_events(mask))
                else:
                    self._selector.register(descriptor, _selector_events(mask))

    def remove(self, descriptor: int, source: Source) -> None:
        """Forget a descriptor, unless it is another source's: closed ones are given out again at once."""
        with self._lock:
            if self._sources.get(descriptor) is not source:
                return
            del self._sources[descriptor]
            try:
                if self._epoll is not None:
                    self._epoll.unregister(descriptor)
                elif self._selector is not None:
                    self._selector.unregister(descriptor)
            except (OSError, KeyError):
                pass  # closed already: the kernel has forgotten it by itself

    def poll(self, timeout: float | None) -> list[Source]:
        """Block until something is ready, `wake` is called, or ``timeout`` seconds have passed."""
        epoll, selector = self._epoll, self._selector
        if epoll is not None:
            ready = [descriptor for descriptor, _ in epoll.poll(timeout)]
        elif selector is not None:
            ready = [key.fd for key, _ in selector.select(timeout)]
        else:
            return []  # closed
        sources = []
        for descriptor in ready:
            if descriptor == self._wake_read:
                self._hear_wake()
                continue
            source = self._sources.get(descriptor)
            if source is not None:
                sources.append(source)
        return sources

    def wake(self) -> None:
        """Make the current or next `poll` return. Callable from any thread and from a finaliser."""
        if not self._woken:
            with self._lock:
                self._woken = True
                if self._wake_write >= 0:
                    try:
                        os.write(self._wake_write, b"\1\0\0\0\0\0\0\0")
                    except BlockingIOError:
                        pass  # full, so awake already

    def _hear_wake(self) -> None:
        # The flag last: a wake() in between is answered by this very return, one after it writes again. The
        # other way round its byte could be read here, with the flag set for ever and no further byte written.
        with self._lock:
            if self._wake_read >= 0:
                try:
                    os.read(self._wake_read, 64)
                except BlockingIOError:
                    pass
                self._woken = False

    def close(self) -> None:
        """Close the poller's own descriptors; the sources' belong to their owners. Idempotent."""
        with self._lock:
            self._closed = self._woken = True
            self._sources.clear()
            for multiplexer in self._epoll, self._selector:
                if multiplexer is not None:
                    multiplexer.close()
            self._epoll = self._selector = None
            for descriptor in {self._wake_read, self._wake_write} - {-1}:
                os.close(descriptor)
            self._wake_read = self._wake_write = -1

    def _register(self, descriptor: int, mask: int) -> None:
        if self._epoll is not None:
            self._epoll.register(descriptor, mask)
        elif self._selector is not None and mask:
            self._selector.register(descriptor, _selector_events(mask))


def _selector_events(mask: int) -> int:
    return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)
