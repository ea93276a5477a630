"""What a copy of this process is that somebody's code has forked: no member of the cluster.

The copy has the parent's connections, and must not speak on them: two processes writing one stream would spoil it for
the parent. It has one thread, the one that forked, and locks that others held at that moment stay locked for ever. So
in the copy:

- the process object lets go of its connections and of the calls that wait to be run,
- the interpreter has no process object any more: asked through the library, the copy is alone, and may become a
  driver of its own,
- a copy that comes back from a call's code ends there, as a script ends.

What this module does not know: `multiprocessing` and others that fork; they end their copies themselves.
"""

from __future__ import annotations

import os
import sys
import weakref
from _thread import allocate_lock
from typing import TYPE_CHECKING, NoReturn

from hybriddist.runtime.context import forget

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


def mind_copies(process: Process) -> None:
    """See to it that a forked copy of ``process`` leaves the cluster alone."""
    found = weakref.ref(process)

    def before() -> None:
        original = found()
        if original is not None:
            for peer in list(original.peers.values()):
                peer.transport.forking()

    def in_child() -> None:
        original = found()
        if original is not None:
            _let_go(original)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_child=in_child)


def _let_go(process: Process) -> None:
    process.is_copy = True
    if process.alarm is not None:
        process.alarm.let_go()
    process.executor.forget()
    for peer in process.peers.values():
        peer.lost = "this process is a forked copy; the connections are its parent's"
        peer.send_lock, peer.recv_lock = allocate_lock(), allocate_lock()
    forget(process)


def end_copy(error: BaseException | None) -> NoReturn:
    """End a copy that has come back from a call's code: no finalisers of the parent's objects, no exit functions."""
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        elif error is not None:
            code = 1
            import traceback  # 3 ms of a worker's start

            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
