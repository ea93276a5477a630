"""Ctrl-C without losing a message.

Python runs signal handlers between any two bytecodes of the main thread. A KeyboardInterrupt that strikes while the
main thread moves a frame (taken off the ring, not yet handed out) would lose that frame, and somebody would wait for
ever. So the handler looks at the interrupted stack from the innermost frame outwards and stops at the first function
it knows::

    user code ─── exposed function ─── shielded function ─── ...
       ▲               │ first known: exposed               the interrupt is raised at once
                                 ▲ │ first known: shielded  it is noted, and delivered when the function leaves

This costs nothing while no signal comes: no flag is set on the fast path, only `pending` is looked at on leaving.

What this module does not know: which functions those are (the caller names them) and what a process does with an
interrupt nobody is there for.
"""

from __future__ import annotations

import signal
import sys
import threading
from _signal import getsignal  # type: ignore[import-not-found]  # without the conversion to an enum, which costs 3 µs a call
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any


class InterruptGuard:
    """Defers SIGINT while a shielded function is the innermost known one on the main thread's stack.

    Args:
        shielded: functions that must not be interrupted in the middle.
        exposed: functions that run user code.
        ignore_unless_exposed: a worker's main thread is the library's own: outside user code SIGINT means nothing.
        also: called with each SIGINT of such a process: user code may run on other threads, too.
    """

    def __init__(
        self,
        shielded: Iterable[Callable[..., Any]],
        exposed: Iterable[Callable[..., Any]],
        *,
        ignore_unless_exposed: bool = False,
        also: Callable[[], None] | None = None,
    ) -> None:
        self._shielded: frozenset[CodeType] = frozenset(_code(function) for function in shielded)
        self._exposed: frozenset[CodeType] = frozenset(_code(function) for function in exposed)
        self._ignore_unless_exposed = ignore_unless_exposed
        self._also = also
        self._previous: Any = None
        self._main = threading.main_thread().ident
        self.pending = False

    def install(self) -> bool:
        """Take SIGINT over, on the main thread; False on any other thread, or if the program ignores SIGINT."""
        if threading.get_ident() != self._main:
            return False
        current = getsignal(signal.SIGINT)
        if current == self._on_signal:
            return True
        if not self._ignore_unless_exposed and not callable(current):
            return False  # SIG_IGN, SIG_DFL or a handler of C code: nothing is raised in Python, nothing to defer
        self._previous = current if callable(current) else signal.default_int_handler
        if self._ignore_unless_exposed:
            self._previous = signal.default_int_handler
        signal.signal(signal.SIGINT, self._on_signal)
        return True

    def uninstall(self) -> None:
        """Give SIGINT back, if it is still ours and this is the main thread."""
        if threading.get_ident() == self._main and getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, self._previous)

    def protects_this_thread(self) -> bool:
        """Whether a shielded function is safe here: off the main thread always, on it while SIGINT is ours."""
        return threading.get_ident() != self._main or getsignal(signal.SIGINT) == self._on_signal

    def deliver(self) -> None:
        """Called by a shielded function as its last act, when `pending`: raise what was deferred.

        Inside another shielded function it stays deferred, until that one leaves.
        """
        if threading.get_ident() == self._main and not self._must_wait(sys._getframe(2)):
            self.pending = False
            self._previous(signal.SIGINT, None)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._ignore_unless_exposed:
            if self._also is not None:
                self._also()
            if not self._inside_user_code(frame):
                return
        if self._must_wait(frame):
            self.pending = True
        else:
            self._previous(signum, frame)

    def _must_wait(self, frame: FrameType | None) -> bool:
        """Whether the innermost known function of the stack is a shielded one."""
        while frame is not None:
            if frame.f_code in self._exposed:
                return False
            if frame.f_code in self._shielded:
                return True
            frame = frame.f_back
        return False

    def _inside_user_code(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code in self._exposed:
                return True
            frame = frame.f_back
        return False


def _code(function: Callable[..., Any]) -> CodeType:
    code: CodeType = function.__code__
    return code
