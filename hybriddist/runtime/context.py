"""Which process object a thread works for.

Usually that is the interpreter's one `Process`. Threads that work for another one (workers that live inside a test's
interpreter) carry it in a context variable. This holder is the only state of the library that belongs to no object.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


class _Default:
    """Holds the process object of this interpreter, once there is one."""

    def __init__(self) -> None:
        self.process: Process | None = None


_default: Final = _Default()
_of_this_context: Final[ContextVar[Process | None]] = ContextVar("hybriddist_process", default=None)


def known() -> Process | None:
    """The process object that this code works for; None if there is none yet."""
    return _of_this_context.get() or _default.process


def this_process() -> Process:
    """The process object that this code works for, where there must be one: in what a process calls on another."""
    process = known()
    assert process is not None
    return process


def become(process: Process | None) -> None:
    """Make ``process`` the interpreter's own; None: it has none any more."""
    _default.process = process


def enter(process: Process) -> None:
    """Make this thread work for ``process``."""
    _of_this_context.set(process)


def forget(process: Process) -> None:
    """This thread and the interpreter no longer work for ``process``."""
    if _default.process is process:
        _default.process = None
    if _of_this_context.get() is process:
        _of_this_context.set(None)
