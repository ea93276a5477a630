"""Signals that the main thread sleeps through, and how it is woken.

Python only notes a signal when it comes, and handles it between two bytecodes of the main thread. One that comes just
before a blocking call of C (a `time.sleep`), or that the system gives to another thread, is noted in time and seen
when that call ends: an interrupt in the very moment in which a call begins to wait was late in one of 200. But Python
also writes a byte into a descriptor, at once::

    SIGINT ─► noted ──────────────────────► handled between two bytecodes of the main thread
                └─► byte ─► whoever polls ─► a helper thread, 20 ms later: handled? ──no──► it knocks

For a worker, whose main thread is the library's own. A program's main thread is not: other libraries use that
descriptor.

What this module does not know: what the signal is for (``interrupts.py``).
"""

from __future__ import annotations

import os
import signal
import sys
from _thread import start_new_thread
from time import sleep
from typing import TYPE_CHECKING, Final

from hybriddist.runtime.interrupts import KNOCK
from hybriddist.runtime.signals import leave_to_main_thread

if TYPE_CHECKING:
    from hybriddist.runtime.interrupts import InterruptGuard

_OURS: Final = frozenset({signal.SIGINT, KNOCK})

_FIRST_LOOK_SECONDS: Final = 0.02
_TRIES: Final = 8
"""The pause doubles with each, up to some seconds in all: code of C that does not let itself be woken is left alone."""


class SignalAlarm:
    """Watches over the signals of one guard. Made on the main thread; a source for the poller.

    Args:
        guard: whose handlers are to see them.
    """

    def __init__(self, guard: InterruptGuard) -> None:
        self._guard = guard
        self._reading, self._writing = os.pipe()
        for descriptor in (self._reading, self._writing):
            os.set_blocking(descriptor, False)
        self._looking = False
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._reading

    def on_ready(self) -> None:
        """A signal has come: see that it is handled."""
        if self._drain() and not self._looking:
            # What was noticed up to now may have been another signal. If it was this one, there is a knock too many.
            self._guard.noticed = False
            self._looking = True
            start_new_thread(self._look, ())

    def let_go(self) -> None:
        """In a forked copy, whose signals are its own."""
        signal.set_wakeup_fd(-1)

    def _look(self) -> None:
        """On a helper thread."""
        leave_to_main_thread()
        guard = self._guard
        pause = _FIRST_LOOK_SECONDS
        try:
            for _ in range(_TRIES):
                sleep(pause)
                self._drain()  # also the bytes of our own knocking
                if guard.noticed or not guard.is_installed() or sys.is_finalizing():
                    guard.noticed = False
                    return
                signal.pthread_kill(guard.main, KNOCK)
                pause *= 2
        finally:
            self._looking = False

    def _drain(self) -> bool:
        """Take the bytes off; whether a signal of ours was among them (each is the number of one)."""
        try:
            return not _OURS.isdisjoint(os.read(self._reading, 4096))
        except BlockingIOError:
            return False
