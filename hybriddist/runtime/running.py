"""Running calls: unpickle, run, and do with the end what the call's mode says. And stopping one that nobody wants.

A call is run by the worker's main thread or by an executor thread, whoever takes it from the queue. While it runs,
that thread's *errand* says which call it is, so that a cancel finds it and no other::

    Cancel ─► still queued: taken out of the queue, answered CANCELLED
           ─► the main thread's errand: a signal, which strikes only while that errand is the one it is at
           ─► an executor thread's errand: an exception at its next bytecode, under a lock that its end takes too
           ─► neither: it has ended

What this module does not know: how messages arrive (``handlers.py``).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from time import perf_counter_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast

from hybriddist.core import captured, payload
from hybriddist.core.functions import ReceivedFunction
from hybriddist.core.messages import MOST_NANOSECONDS, Call, Mode, Outcome, Started
from hybriddist.errors import RemoteProtocolError, TransportError
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.context import this_process
from hybriddist.runtime.copies import end_copy
from hybriddist.runtime.execution import call_in_user_code
from hybriddist.runtime.replies import reply
from hybriddist.transport import Buffer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process


Errand = tuple["Peer | None", int, int, int]
"""What a thread is at: whose call, its call id, and its reference (whence, id); None, 0: a call of our own."""

_NO_KEYWORDS: Final[dict[str, Any]] = {}

_KEPT: Final = (int(Mode.STORE), int(Mode.WAIT))
"""The modes of calls whose value is kept under a reference."""


def is_coroutine(value: Any) -> bool:
    """Whether a call's value is what an ``async def`` returns."""
    return type(value) is CoroutineType


def run_call(peer: Peer, call: Call, definition: ReceivedFunction | None, entry: Completion | None) -> None:
    """Run a call and do with its end what its mode says.

    Args:
        entry: of the reference that keeps its value; it may be gone from the store, and tells of a cancel even so.
    """
    process = peer.process
    receiver = process.receiver
    mode = call.mode
    errand = (peer, call.call_id, call.whence, call.id)
    function = perform if entry is None else partial(_perform_if_wanted, entry)
    try:
        if receiver.is_main():
            receiver.errand = errand
            try:
                value = function(call, definition)
            finally:
                receiver.errand = None
        else:
            value = process.executor.interruptible(errand, function, call, definition)
    except BaseException as error:
        if process.is_copy:
            end_copy(error)
        _finish_call(peer, call, entry, Outcome.ERROR, captured.capture(error))
        return
    if process.is_copy:
        end_copy(None)
    if type(value) is CoroutineType:
        task = process.coroutines.start(value)
        if entry is not None:  # it may end without the task, by a cancel
            entry.add_callback(partial(_end_task, task))
        task.add_done_callback(partial(_finish_coroutine, peer, call, entry))
    elif mode & 0x0F:
        _finish_call(peer, call, entry, Outcome.VALUE, value)
    else:
        reply(peer, call.call_id, Outcome.VALUE, value, last=True)


def _end_task(task: Future[Any], _: object) -> None:
    task.cancel()


def _perform_if_wanted(entry: Completion, call: Call, definition: ReceivedFunction | None) -> Any:
    """Looks only now, when the errand is known: a cancel before this is seen here, a later one finds the errand."""
    return None if entry.outcome == Outcome.CANCELLED else perform(call, definition)


def perform(call: Call, definition: ReceivedFunction | None) -> Any:  # exposed
    """Unpickle and run: user code both."""
    body, buffers = call.body, call.buffers
    if definition is None:
        function, args, kwargs = payload.loads(body, buffers)
    else:
        function = definition.load()
        if not body:
            return function()
        args, kwargs = payload.loads(body, buffers)
    if call.whence < 0:
        args = this_process().blocks.dress(args, -call.whence, call.id)
    if buffers:
        # The message's own hold on large buffers ends here: they live as long as the arguments do.
        cast("list[Buffer]", buffers).clear()
    return function(*args, **kwargs)


def _finish_coroutine(peer: Peer, call: Call, entry: Completion | None, future: Future[Any]) -> None:
    """Runs on the event loop's thread, which must not be held up by pickling and sending."""

    def finish() -> None:
        from concurrent.futures import CancelledError  # 3 ms; only coroutines need it

        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            _finish_call(peer, call, entry, Outcome.VALUE, future.result())
        else:
            _finish_call(peer, call, entry, Outcome.ERROR, captured.capture(error))

    peer.process.executor.submit(finish)


def _finish_call(peer: Peer, call: Call, entry: Completion | None, outcome: int, content: Any) -> None:
    mode = call.mode
    if mode == Mode.FETCH:
        reply(peer, call.call_id, outcome, content, last=True)
        return
    if mode == Mode.DO:
        if outcome == Outcome.ERROR:
            print(f"remote_do on process {peer.process.pid} failed:\n{content}", file=sys.stderr)
        return
    process = peer.process
    if entry is not None and entry.outcome == Outcome.CANCELLED:
        outcome, content = Outcome.CANCELLED, None
    process.store.finish(RRID(call.whence, call.id), outcome, content)
    if mode == Mode.WAIT:
        reply(peer, call.call_id, outcome, content if outcome == Outcome.ERROR else None, last=True)


def run_here(
    process: Process,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rrid: RRID | None,
    entry: Completion | None,
    ended: Callable[[], None] | None = None,
) -> None:
    """A call of the process to itself, on an executor thread, by reference."""
    errand = (None, 0, *(rrid or (0, 0)))

    def run() -> Any:
        if entry is not None and entry.outcome == Outcome.CANCELLED:
            return None
        return call_in_user_code(function, args, kwargs)

    try:
        value = process.executor.interruptible(errand, run)
        if is_coroutine(value):
            value = process.coroutines.run(value)
        outcome = Outcome.VALUE
    except BaseException as error:
        value, outcome = captured.capture(error), Outcome.ERROR
    if ended is not None:
        ended()
    if rrid is not None:
        process.store.finish(rrid, outcome, value)
    elif outcome == Outcome.ERROR:
        print(f"remote_do on process {process.pid} failed:\n{value}", file=sys.stderr)


# ---- several calls of one message -------------------------------------------------------------------------------


class Each:
    """Several calls of one message, run one after the other by whoever has the time.

    Usually that is the worker's main thread alone. When one of the calls takes long, the standby thread queues the
    rest for other threads (`rest`): the items are taken from one queue, so each runs once.

    Whoever asked must be able to tell, when this process dies, which calls had begun. The rule: *of those that have no
    result and are not said to have begun (`Started`), at most the oldest has begun.* So a call that is not the oldest
    of its peer's calls without a result is announced before it begins.
    """

    def __init__(self, peer: Peer, call: Call, definition: ReceivedFunction | None) -> None:
        self._peer = peer
        self._call = call
        self._definition = definition
        self._function: Any = None
        self._items: deque[tuple[int, tuple[Any, ...]]] | None = None
        self._dropped: set[int] = set()
        """Call ids that nobody wants any more."""
        self._shared = False
        self._ends = count(1)
        """Counts the calls that need no announcement any more: each has a result, or was announced."""
        peer.each.append(self)

    def run(self) -> None:
        """Run what is left."""
        peer = self._peer
        receiver = peer.process.receiver
        if self._items is None:
            try:
                function, items = call_in_user_code(self._unpickle, (), {})
                if len(items) != self._call.id:
                    raise RemoteProtocolError(f"a message of {self._call.id} calls has {len(items)} in it")
            except BaseException as error:
                peer.each.remove(self)
                failure = captured.capture(error)
                for number in range(self._call.call_id, self._call.call_id + self._call.id):
                    reply(peer, number, Outcome.NOT_RUN, failure)
                return
            self._function = function
            self._items = deque(enumerate(items, self._call.call_id))
        is_main = receiver.is_main()
        if is_main:
            receiver.each = self
        items_left = self._items
        while items_left:
            try:
                number, args = items_left.popleft()
            except IndexError:
                break
            if number in self._dropped:
                reply(peer, number, Outcome.CANCELLED, None)
            else:
                self._run_one(number, args, is_main)
            del args
            receiver.progress += 1
            if next(self._ends) == self._call.id:
                peer.each.remove(self)
        if is_main:
            receiver.each = None

    def rest(self) -> Callable[[], None] | None:
        """What another thread may run; None if nothing is left."""
        if not self._items:
            return None
        self._shared = True  # before another thread can take one: whoever begins one after that announces it
        return self.run

    def drop(self, call_id: int) -> None:
        """Do not begin this call, if it is one of ours."""
        if self._call.call_id <= call_id < self._call.call_id + self._call.id:
            self._dropped.add(call_id)

    def _unpickle(self) -> tuple[Any, Any]:
        call = self._call
        content = payload.loads(call.body, call.buffers)
        if self._definition is None:
            return content  # type: ignore[no-any-return]
        return self._definition.load(), content

    def _run_one(self, number: int, args: tuple[Any, ...], is_main: bool) -> None:
        peer = self._peer
        process = peer.process
        announced = not is_main or self._shared or self._call.whence != 0 or peer.each[0] is not self
        if announced:
            _announce(peer, number)
        begun = perf_counter_ns()
        try:
            if is_main:
                process.receiver.errand = (peer, number, 0, 0)
                try:
                    value = call_in_user_code(self._function, args, _NO_KEYWORDS)
                finally:
                    process.receiver.errand = None
            else:
                value = process.executor.interruptible(
                    (peer, number, 0, 0), call_in_user_code, self._function, args, _NO_KEYWORDS
                )
        except BaseException as error:
            if process.is_copy:
                end_copy(error)
            reply(peer, number, Outcome.ERROR, captured.capture(error))
            return
        if process.is_copy:
            end_copy(None)
        if type(value) is CoroutineType:
            if not announced:
                _announce(peer, number)  # it begins now, and has no result for a while
            call = self._call._replace(call_id=number, mode=Mode.FETCH)
            process.coroutines.start(value).add_done_callback(partial(_finish_coroutine, peer, call, None))
        else:
            nanoseconds = min(perf_counter_ns() - begun, MOST_NANOSECONDS)
            reply(peer, number, Outcome.VALUE, value, nanoseconds=nanoseconds)


def _announce(peer: Peer, call_id: int) -> None:
    """Say that a call begins."""
    try:
        peer.send(Started(call_id))
    except TransportError:
        pass  # whoever asked is gone


# ---- cancelling -------------------------------------------------------------------------------------------------


def drop_or_interrupt(peer: Peer, call_id: int) -> None:
    """Somebody wants no answer to a call any more. May take milliseconds."""
    process = peer.process
    for each in list(peer.each):
        each.drop(call_id)
    for work in list(process.executor.queue):
        call = _queued_call(work)
        if call is not None and call.call_id == call_id and work.args[0] is peer and _take_out(process, work):  # type: ignore[attr-defined]
            _finish_call(peer, call, work.args[3], Outcome.CANCELLED, None)  # type: ignore[attr-defined]
            return
    interrupt_errand(process, lambda errand: errand[0] is peer and errand[1] == call_id)


def cancel_reference(process: Process, rrid: RRID) -> bool:
    """End a reference that has no value yet: its call is dropped or interrupted; whether it had none."""
    if not process.store.cancel(rrid):
        entry = process.store.peek(rrid)
        return entry is not None and entry.outcome == Outcome.CANCELLED
    for work in list(process.executor.queue):
        call = _queued_call(work)
        if call is not None and call.mode in _KEPT and (call.whence, call.id) == rrid:
            if _take_out(process, work):
                _finish_call(work.args[0], call, work.args[3], Outcome.CANCELLED, None)  # type: ignore[attr-defined]
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
