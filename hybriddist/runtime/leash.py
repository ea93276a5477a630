"""The worker's side of its leash: when stdin ends, leave.

Whoever starts a worker keeps the other end of its stdin open for as long as the worker shall live. The end of file
there comes within milliseconds after the death of that process, also by SIGKILL and also through ssh. Leaving must
not depend on anything that can fail, such as logging to a pipe whose reader is dead: the exit is armed first, the
rest is tried after.

A thread of its own waits here, not the worker's selector: the main thread may be in a call for hours, and the standby
thread takes seconds to be noticed when it is stuck in the same lock. It needs the interpreter's lock only at the
moment of leaving; a call that never gives that lock up is ended by the template process, which outlives the driver
for a second in order to look.

What this module does not know: connections, calls, clusters.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Callable
from threading import Event, Thread
from typing import Final

from hybriddist.runtime.folders import Seat
from hybriddist.runtime.signals import leave_to_main_thread

LAST_WORDS_SECONDS: Final = 0.5
"""How long ``on_end`` may take before the process leaves without it."""

_CHUNK_BYTES: Final = 4096


class Leash:
    """Leave the process with exit code 1 when a descriptor ends.

    Args:
        fd: the reading end of a pipe or a socket; the leash owns it.
        seat: of this process in the folder of sockets, to be left on the way out.
        on_end: last words; they get half a second, and nothing depends on them.
        reads: whether bytes that come are read and dropped. False leaves them to whoever reads stdin, and notices
            only the end.
    """

    def __init__(
        self,
        fd: int,
        *,
        seat: Seat | None = None,
        on_end: Callable[[], None] | None = None,
        reads: bool = True,
    ) -> None:
        self._fd = fd
        self.seat = seat
        self.on_end = on_end
        self._reads = reads
        self._armed = False

    def fileno(self) -> int:
        """The descriptor, for those who wait on several."""
        return self._fd

    def arm(self) -> None:
        """Start to watch. Idempotent; call it early."""
        if not self._armed:
            self._armed = True
            Thread(target=self._watch, name="hybriddist-leash", daemon=True).start()

    def _watch(self) -> None:
        leave_to_main_thread()
        try:
            wait_for_end(self._fd, self._reads)
        finally:
            self._leave()

    def _leave(self) -> None:
        try:
            if self.seat is not None:
                self.seat.leave()
            if self.on_end is not None:
                done = Event()
                Thread(target=_say_last_words, args=(self.on_end, done), daemon=True).start()
                done.wait(LAST_WORDS_SECONDS)
        finally:
            os._exit(1)


def _say_last_words(on_end: Callable[[], None], done: Event) -> None:
    try:
        on_end()
    finally:
        done.set()


def wait_for_end(fd: int, reads: bool = True) -> None:
    """Block until the other side of ``fd`` is gone; an error counts as the end."""
    if reads:
        with contextlib.suppress(OSError):
            while os.read(fd, _CHUNK_BYTES):
                pass
        return
    waiter = select.poll()
    # No event but the hang-up: bytes that nobody has read yet must not make this spin. Of a socket only half may
    # end, which Linux alone tells apart.
    waiter.register(fd, getattr(select, "POLLRDHUP", 0))
    waiter.poll()


def is_leash(fd: int) -> bool:
    """Whether ``fd`` can serve as a leash: a pipe or socket that has not ended yet.

    The null device, a file, or a closed stdin (batch systems give these) would make a worker leave at once.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    events = dict(waiter.poll(0)).get(fd, 0)
    return not events & (select.POLLHUP | select.POLLERR | select.POLLNVAL)


def take_stdin(*, close_stdin: bool, seat: Seat | None = None) -> Leash | None:
    """Make the leash of this process's stdin, after what came through it at the start has been read.

    With ``close_stdin`` the descriptor moves away and the null device takes its place, so that neither calls nor
    the programs they start can read, or hold, the leash. Returns ``None`` where stdin is no leash.
    """
    import sys

    usable = is_leash(0)
    if not close_stdin:
        return Leash(0, seat=seat, reads=False) if usable else None
    kept = os.dup(0) if usable else -1
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=True)
    os.close(null)
    # A fresh object: the old one may hold bytes that it read ahead.
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    return Leash(kept, seat=seat) if usable else None
