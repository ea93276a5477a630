"""Print text on the driver's stdout and stderr without ever holding up who hands it in for long.

The driver's stdout may be a slow terminal (then its readers wait, and so in the end do the workers, as with any pipe),
a pipe that nobody reads (then, after a second without progress, text is dropped and counted), or closed (then it is
dropped). So one thread writes and nothing else::

    relay ── put ──> [ queue, bounded by bytes ] ──> thread ──> sys.stdout, sys.stderr as they are at that moment

What this module does not know: workers, pipes, lines.
"""

from __future__ import annotations

import sys
from collections import deque
from threading import Condition, Event, Thread
from typing import Final, TextIO

from hybriddist.runtime.signals import leave_to_main_thread

QUEUE_CHARACTERS: Final = 4 << 20
"""Text that waits to be printed; a burst of a worker's pipes (64 KiB each) is far below it."""

STALL_SECONDS: Final = 1.0
"""Without progress for so long, a full queue drops what comes: the worker is worth more than its output."""

_BATCH_CHARACTERS: Final = 64 << 10


class Printer:
    """A bounded queue of text and the thread that prints it. The thread starts with the first text."""

    def __init__(self, capacity: int = QUEUE_CHARACTERS, stall_seconds: float = STALL_SECONDS) -> None:
        self._capacity = capacity
        self._stall_seconds = stall_seconds
        self._changed = Condition()
        self._queue: deque[tuple[str, str] | Event] = deque()
        self._size = 0
        self._dropped = 0
        self._stalled = False
        self._closed = False
        self._thread: Thread | None = None

    def put(self, target: str, text: str) -> None:
        """Queue ``text`` for ``target`` ("stdout" or "stderr"). Waits for room while printing makes progress."""
        with self._changed:
            self._start()
            while self._size >= self._capacity and not self._stalled and not self._closed:
                before = self._size
                if not self._changed.wait(self._stall_seconds) and self._size == before:
                    self._stalled = True
            if self._size >= self._capacity or self._closed:
                self._dropped += 1
                return
            self._queue.append((target, text))
            self._size += len(text)
            self._changed.notify_all()

    def mark(self) -> Event:
        """An event that is set when everything queued until now has been printed."""
        event = Event()
        with self._changed:
            if self._closed or self._thread is None:
                event.set()
            else:
                self._queue.append(event)
                self._changed.notify_all()
        return event

    def close(self, timeout: float) -> None:
        """Print what is queued, for at most ``timeout`` seconds, and end the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            thread = Thread(target=self._print, name="hybriddist-printer", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # no more threads to be had now: the next line tries again
            self._thread = thread

    def _print(self) -> None:
        leave_to_main_thread()
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                first = self._queue.popleft()
                if isinstance(first, Event):
                    first.set()
                    continue
                target, text = first
                parts = [text]
                size = len(text)
                # One write for lines that follow each other: they are not torn apart by the driver's own prints.
                while size < _BATCH_CHARACTERS and self._queue:
                    following = self._queue[0]
                    if isinstance(following, Event) or following[0] != target:
                        break
                    parts.append(following[1])
                    size += len(following[1])
                    self._queue.popleft()
            write(getattr(sys, target), "".join(parts))
            with self._changed:
                self._size -= size
                self._stalled = False
                if self._dropped and self._size < self._capacity // 2 and not self._closed:
                    note = f"({self._dropped} lines of workers' output were dropped: nobody read them)\n"
                    self._dropped = 0
                    self._queue.append(("stderr", note))
                    self._size += len(note)
                self._changed.notify_all()


def write(stream: TextIO | None, text: str) -> bool:
    """Write and flush, whatever the stream is. False if it took nothing: it is closed, or its reader is gone."""
    if stream is None:
        return False
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except Exception:  # sys.stdout may be anybody's object; no failure of it may end the relay
        return False
    return True
