"""Ctrl-C without losing a message.

Python runs signal handlers between any two bytecodes of the main thread. A KeyboardInterrupt that strikes while the
main thread moves a frame (taken off the ring, not yet handed out) would lose that frame, and somebody would wait for
ever. So the handler looks at the interrupted stack from the innermost frame outwards and stops at the first function
it knows::

    user code ─── exposed function ─── shielded function ─── ...
       ▲               │ first known: exposed               the interrupt is raised at once
                                 ▲ │ first known: shielded  it is noted, and delivered when the function leaves

This costs nothing while no signal comes: no flag is set on the fast path, only `pending` is looked at on leaving. A
signal that strikes after that look, on the last steps of a shielded function, would be forgotten (one in a hundred,
when a call is interrupted just as it begins to wait). So while one is pending a helper thread knocks every few
milliseconds. What was meant for one call is not delivered to the next: the exposed frame is remembered.

A knock is another signal, `KNOCK`. If it were SIGINT again, one that is handled late, after the interrupt it was sent
for has been delivered, could not be told from a new Ctrl-C. (It happened under load; Go knocks with the same signal,
since nobody minds one too many.)

On a worker an import is let come to its end as well, whoever asked for it (a pickle, or user code): an extension module
that was interrupted halfway cannot be imported a second time, and numpy would be broken for the worker's life. That has
a limit, for a module that never ends. To the code itself the two are not the same: inside a shielded function a process
cannot wait for an answer, inside an import it can, and does (``lending.py``).

What this module does not know: which functions those are (the caller names them) and what a process does with an
interrupt nobody is there for.
"""

from __future__ import annotations

import signal
import sys
import threading
from _signal import getsignal  # type: ignore[import-not-found]  # without the conversion to an enum, which costs 3 µs a call
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, sleep
from types import CodeType, FrameType
from typing import Any, Final

KNOCK: Final = signal.SIGURG
"""Asks the main thread to look whether something is to be delivered; does nothing if not."""

_KNOCK_SECONDS: Final = 0.003

_MOST_IMPORT_SECONDS: Final = 10.0
"""How long an interrupt waits for the end of an import: longer than that of any library, on a machine with load."""


class InterruptGuard:
    """Defers SIGINT while a shielded function is the innermost known one on the main thread's stack.

    Args:
        shielded: functions that must not be interrupted in the middle.
        exposed: functions that run user code.
        waits: functions that only wait, and may be interrupted as well; but not if an import waits.
        ignore_unless_exposed: a worker's main thread is the library's own: outside user code SIGINT means nothing.
        also: called with each SIGINT of such a process: user code may run on other threads, too.
    """

    def __init__(
        self,
        shielded: Iterable[Callable[..., Any]],
        exposed: Iterable[Callable[..., Any]],
        *,
        waits: Iterable[Callable[..., Any]] = (),
        ignore_unless_exposed: bool = False,
        also: Callable[[], None] | None = None,
    ) -> None:
        self._shielded: frozenset[CodeType] = frozenset(_code(function) for function in shielded)
        self._user_code: frozenset[CodeType] = frozenset(_code(function) for function in exposed)
        self._exposed: frozenset[CodeType] = self._user_code.union(_code(function) for function in waits)
        self._ignore_unless_exposed = ignore_unless_exposed
        self._also = also
        self._previous: Any = None
        self._previous_knock: Any = signal.SIG_DFL
        self.main = threading.main_thread().ident or 0
        self.noticed = False
        """Set whenever a handler runs; for whoever wants to know (``alarm.py``)."""
        self.pending = False
        self._struck: FrameType | None = None
        """The exposed frame that is meant by the pending interrupt; None on a driver, where it is the whole program."""
        self._pending_since = 0.0
        self._telling_others = False
        self._victims: deque[Callable[[], bool]] = deque()

    def install(self) -> bool:
        """Take SIGINT over, on the main thread; False on any other thread, or if the program ignores SIGINT."""
        if threading.get_ident() != self.main:
            return False
        current = getsignal(signal.SIGINT)
        if current == self._on_signal:
            return True
        if not self._ignore_unless_exposed and not callable(current):
            return False  # SIG_IGN, SIG_DFL or a handler of C code: nothing is raised in Python, nothing to defer
        self._previous = current if callable(current) else signal.default_int_handler
        if self._ignore_unless_exposed:
            self._previous = signal.default_int_handler
        self._previous_knock = signal.signal(KNOCK, self._on_knock)
        signal.signal(signal.SIGINT, self._on_signal)
        return True

    def is_installed(self) -> bool:
        """Whether SIGINT is ours."""
        return bool(getsignal(signal.SIGINT) == self._on_signal)

    def uninstall(self) -> None:
        """Give SIGINT back, if it is still ours and this is the main thread."""
        if threading.get_ident() == self.main and self.is_installed():
            signal.signal(signal.SIGINT, self._previous)
            signal.signal(KNOCK, self._previous_knock)

    def protects_this_thread(self) -> bool:
        """Whether a shielded function is safe here: off the main thread always, on it while SIGINT is ours."""
        return threading.get_ident() != self.main or getsignal(signal.SIGINT) == self._on_signal

    def is_shielded(self) -> bool:
        """Whether the code that asks runs inside a shielded function, on any thread, and not in user code."""
        return self.must_wait(sys._getframe(1))

    def deliver(self) -> None:
        """Called by a shielded function as its last act, when `pending`: raise what was deferred.

        Inside another shielded function it stays deferred, until that one leaves.
        """
        if threading.get_ident() == self.main:
            frame = sys._getframe(2)
            if self._is_obsolete(frame):
                self._forget()
            elif not self._is_deferred(frame):
                self._forget()
                self._previous(signal.SIGINT, None)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.noticed = True
        struck = None
        if self._ignore_unless_exposed:
            self._tell_others()
            struck = self._exposed_frame(frame)
            if struck is None:
                return
        self._interrupt(struck, frame)

    def _interrupt(self, struck: FrameType | None, frame: FrameType | None) -> None:
        """Raise it now, or see that it is raised later."""
        if not self._is_deferred(frame):
            self._forget()
            self._previous(signal.SIGINT, frame)
        elif not self.pending or self._is_obsolete(frame):
            self._struck = struck
            self._pending_since = monotonic()
            if not self.pending:  # else somebody knocks
                self.pending = True
                # Not `Thread`, which takes locks that the interrupted code may hold.
                start_new_thread(self._knock_again, ())

    def _on_knock(self, signum: int, frame: FrameType | None) -> None:
        self.noticed = True
        if self._victims:
            self._on_strike(frame)
        if not self.pending:
            if callable(self._previous_knock):
                self._previous_knock(signum, frame)
        elif self._is_obsolete(frame):
            self._forget()
        elif not self._is_deferred(frame):
            self._forget()
            self._previous(signal.SIGINT, frame)

    def strike(self, is_meant: Callable[[], bool]) -> None:
        """Interrupt what runs on a worker's main thread, if it is still what is meant when the signal gets there."""
        self._victims.append(is_meant)
        signal.pthread_kill(self.main, KNOCK)

    def _on_strike(self, frame: FrameType | None) -> None:
        """One call is to be interrupted: unlike for a Ctrl-C, no other thread is concerned, and no successor."""
        meant = False
        while self._victims:
            meant |= self._victims.popleft()()
        struck = self._exposed_frame(frame)
        if meant and struck is not None:
            self._interrupt(struck, frame)

    def _tell_others(self) -> None:
        if self._also is not None and not self._telling_others:  # a second signal may strike in here
            self._telling_others = True
            try:
                self._also()
            finally:
                self._telling_others = False

    def _knock_again(self) -> None:
        """On a helper thread: knock until the interrupt has been delivered or is obsolete."""
        while True:
            sleep(_KNOCK_SECONDS)
            if not self.pending:
                return
            if not self.is_installed():
                self._forget()
                return
            signal.pthread_kill(self.main, KNOCK)

    def _forget(self) -> None:
        self.pending = False
        self._struck = None

    def _is_obsolete(self, frame: FrameType | None) -> bool:
        """Whether the call that was meant has ended."""
        if self._struck is None:
            return False
        while frame is not None:
            if frame is self._struck:
                return False
            frame = frame.f_back
        return True

    def must_wait(self, frame: FrameType | None) -> bool:
        """Whether the innermost known function of the stack is a shielded one. Of any thread's stack."""
        while frame is not None:
            if frame.f_code in self._exposed:
                return False
            if frame.f_code in self._shielded:
                return True
            frame = frame.f_back
        return False

    def is_importing(self, frame: FrameType | None) -> bool:
        """Whether an import is under way below the innermost function that runs user code. Of any thread's stack."""
        while frame is not None and frame.f_code not in self._user_code:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False

    def _is_deferred(self, frame: FrameType | None) -> bool:
        """Whether an interrupt must not be raised here now."""
        if self.must_wait(frame):
            return True
        if not self._ignore_unless_exposed or not self.is_importing(frame):
            return False
        return not self.pending or monotonic() - self._pending_since < _MOST_IMPORT_SECONDS

    def _exposed_frame(self, frame: FrameType | None) -> FrameType | None:
        """The innermost exposed frame of the stack."""
        while frame is not None and frame.f_code not in self._exposed:
            frame = frame.f_back
        return frame


def _code(function: Callable[..., Any]) -> CodeType:
    code: CodeType = function.__code__
    return code
