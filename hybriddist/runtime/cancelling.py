"""Stopping a call that nobody wants any more, wherever it is.

::

    Cancel ─► still queued: taken out of the queue, answered CANCELLED
           ─► the main thread's errand: a signal, which strikes only while that errand is the one it is at
           ─► an executor thread's errand: an exception at its next bytecode, under a lock that its end takes too
           ─► a coroutine, which no thread is at: its task is cancelled
           ─► none of these: it has ended

The items of the maps of a process that is gone are cancelled likewise. Other calls of it go on: what they do may be
meant to last.

What this module does not know: how calls run (``running.py``), and how messages arrive (``handlers.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hybriddist.core.messages import Call, Outcome
from hybriddist.ids import RRID
from hybriddist.runtime.running import KEPT, Errand, finish_call, let_go, run_call

if TYPE_CHECKING:
    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process


def drop_or_interrupt(peer: Peer, call_id: int) -> None:
    """Somebody wants no answer to a call any more. May take milliseconds."""
    process = peer.process
    for each in list(peer.each):
        each.drop(call_id)
    for work in list(process.executor.queue):
        call = _queued_call(work)
        if call is not None and call.call_id == call_id and work.args[0] is peer and _take_out(process, work):  # type: ignore[attr-defined]
            finish_call(peer, call, work.args[3], Outcome.CANCELLED, None)  # type: ignore[attr-defined]
            process.executor.submit(partial(let_go, call))
            return
    if not peer.tasks.cancel(call_id):
        interrupt_errand(process, lambda errand: errand[0] is peer and errand[1] == call_id)


def stop_maps_of(peer: Peer) -> None:
    """A process is gone: nobody can take the results of what it has given out of its maps."""
    if not peer.each:
        return
    for each in list(peer.each):
        each.drop_all()
    process = peer.process

    def is_meant(errand: Errand) -> bool:
        return errand[0] is peer and any(each.has(errand[1]) for each in list(peer.each))

    errand = process.receiver.errand
    if errand is not None and is_meant(errand):
        process.guard.strike(lambda: process.receiver.errand is errand)
    process.executor.interrupt_one(is_meant)


def cancel_reference(process: Process, rrid: RRID) -> bool:
    """End a reference that has no value yet: its call is dropped or interrupted; whether it had none."""
    if not process.store.cancel(rrid):
        entry = process.store.peek(rrid)
        return entry is not None and entry.outcome == Outcome.CANCELLED
    for work in list(process.executor.queue):
        call = _queued_call(work)
        if call is not None and call.mode in KEPT and (call.whence, call.id) == rrid:
            if _take_out(process, work):
                finish_call(work.args[0], call, work.args[3], Outcome.CANCELLED, None)  # type: ignore[attr-defined]
                process.executor.submit(partial(let_go, call))
            break
    interrupt_errand(process, lambda errand: errand[2:] == rrid)
    return True


def interrupt_errand(process: Process, is_meant: Callable[[Errand], bool]) -> None:
    """Interrupt the thread whose errand is meant, if there is one, and nothing that it does afterwards."""
    errand = process.receiver.errand
    if errand is not None and is_meant(errand):
        process.guard.strike(lambda: process.receiver.errand is errand)
    else:
        process.executor.interrupt_one(is_meant)


def _queued_call(work: Callable[[], None]) -> Call | None:
    if isinstance(work, partial) and work.func is run_call:
        call: Call = work.args[1]
        return call
    return None


def _take_out(process: Process, work: Callable[[], None]) -> bool:
    try:
        process.executor.queue.remove(work)
    except ValueError:
        return False  # somebody has just taken it to run it
    return True
