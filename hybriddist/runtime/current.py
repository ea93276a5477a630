"""Which process object the plain functions mean.

`hybriddist.remotecall(...)` and its like act for "this process". That is the process's one `Process` object, except on
threads that work for another one (workers that live inside a test's interpreter): those carry theirs in a context
variable. This holder is the only state of the library that belongs to no object.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


class _Default:
    """Holds the process object of this interpreter, made on first use."""

    def __init__(self) -> None:
        self.process: Process | None = None


_default: Final = _Default()
_of_this_context: Final[ContextVar[Process | None]] = ContextVar("hybriddist_process", default=None)


def current() -> Process:
    """The process object that this code works for."""
    process = _of_this_context.get() or _default.process
    if process is None:
        from hybriddist.ids import DRIVER
        from hybriddist.runtime.process import Process

        process = _default.process = Process(DRIVER)
    return process


def become(process: Process) -> None:
    """Make ``process`` the interpreter's own: a worker does this once, when it starts."""
    _default.process = process


def enter(process: Process) -> None:
    """Make this thread work for ``process``."""
    _of_this_context.set(process)
