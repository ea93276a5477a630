"""What each message means to the process that receives it.

Handlers run on whichever thread receives, in the order of the messages, and must not block: what runs user code or
pickles (calls, requests) is queued for an executing thread. `TABLE` maps each message class to its handler.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast

from hybriddist.core import captured, payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.functions import ReceivedFunction
from hybriddist.core.messages import (
    Call,
    Claims,
    Define,
    Forget,
    Identify,
    Join,
    Joined,
    Leave,
    Left,
    Members,
    Mode,
    Operation,
    Outcome,
    Request,
    Result,
    Started,
    new,
)
from hybriddist.errors import RemoteProtocolError, SerializationError, TransportError
from hybriddist.ids import DRIVER, RRID
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.copies import end_copy
from hybriddist.runtime.execution import call_in_user_code
from hybriddist.transport import Buffer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process


MAX_EACH: Final = 1 << 16
"""Calls of one message."""

_NO_KEYWORDS: Final[dict[str, Any]] = {}


def is_coroutine(value: Any) -> bool:
    """Whether a call's value is what an ``async def`` returns."""
    return type(value) is CoroutineType


# ---- calls ------------------------------------------------------------------------------------------------------


def _on_call(peer: Peer, call: Call) -> None:
    mode = call.mode
    if mode == Mode.EACH:
        _on_each(peer, call)
        return
    if mode == Mode.STORE or mode == Mode.WAIT:
        peer.process.store.created(RRID(call.whence, call.id))
    # Looked up now: the function may be forgotten before the call's turn comes.
    key = call.function_key
    peer.queue.append(partial(_run_call, peer, call, peer.functions_in.find(key) if key else None))


def _run_call(peer: Peer, call: Call, definition: ReceivedFunction | None) -> None:
    """Run a call and do with its end what its mode says."""
    process = peer.process
    mode = call.mode
    try:
        if process.receiver.is_main():
            value = perform(call, definition)
        else:
            value = process.executor.interruptible(perform, call, definition)
    except BaseException as error:
        if process.is_copy:
            end_copy(error)
        _finish_call(peer, call, Outcome.ERROR, captured.capture(error))
        return
    if process.is_copy:
        end_copy(None)
    if type(value) is CoroutineType:
        process.coroutines.start(value).add_done_callback(partial(_finish_coroutine, peer, call))
    elif mode & 0x0F:
        _finish_call(peer, call, Outcome.VALUE, value)
    else:
        reply(peer, call.call_id, Outcome.VALUE, value, last=True)


def _on_each(peer: Peer, call: Call) -> None:
    if not 0 < call.id <= MAX_EACH:
        raise RemoteProtocolError(f"a message with {call.id} calls in it; from 1 to {MAX_EACH} are allowed")
    key = call.function_key
    each = Each(peer, call, peer.functions_in.find(key) if key else None)
    peer.queue.append(each.run)


def _report_start(peer: Peer, call_id: int) -> None:
    with contextlib.suppress(TransportError):  # whoever asked is gone
        peer.send(Started(call_id))


class Each:
    """Several calls of one message, run one after the other by whoever has the time.

    Usually that is the worker's main thread alone. When one of the calls takes long, the standby thread queues the
    rest for other threads (`Receiver.rest_of_each`): the items are taken from one queue, so each runs once.
    """

    def __init__(self, peer: Peer, call: Call, definition: ReceivedFunction | None) -> None:
        self._peer = peer
        self._call = call
        self._definition = definition
        self._function: Any = None
        self._items: deque[tuple[int, tuple[Any, ...]]] | None = None

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
            self._run_one(number, args, is_main)
            del args
            receiver.progress += 1
        if is_main:
            receiver.each = None

    def rest(self) -> Callable[[], None] | None:
        """What another thread may run; None if nothing is left."""
        return self.run if self._items else None

    def _unpickle(self) -> tuple[Any, Any]:
        call = self._call
        content = payload.loads(call.body, call.buffers)
        if self._definition is None:
            return content  # type: ignore[no-any-return]
        return self._definition.load(), content

    def _run_one(self, number: int, args: tuple[Any, ...], is_main: bool) -> None:
        peer = self._peer
        try:
            if is_main:
                value = call_in_user_code(self._function, args, _NO_KEYWORDS)
            else:
                _report_start(peer, number)
                value = peer.process.executor.interruptible(call_in_user_code, self._function, args, _NO_KEYWORDS)
        except BaseException as error:
            if peer.process.is_copy:
                end_copy(error)
            reply(peer, number, Outcome.ERROR, captured.capture(error))
            return
        if peer.process.is_copy:
            end_copy(None)
        if type(value) is CoroutineType:
            call = self._call._replace(call_id=number, mode=Mode.FETCH)
            peer.process.coroutines.start(value).add_done_callback(partial(_finish_coroutine, peer, call))
        else:
            reply(peer, number, Outcome.VALUE, value)


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
    if buffers:
        # The message's own hold on large buffers ends here: they live as long as the arguments do.
        cast("list[Buffer]", buffers).clear()
    return function(*args, **kwargs)


def _finish_coroutine(peer: Peer, call: Call, future: Future[Any]) -> None:
    """Runs on the event loop's thread, which must not be held up by pickling and sending."""

    def finish() -> None:
        from concurrent.futures import CancelledError  # 3 ms; only coroutines need it

        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            _finish_call(peer, call, Outcome.VALUE, future.result())
        else:
            _finish_call(peer, call, Outcome.ERROR, captured.capture(error))

    peer.process.executor.submit(finish)


def _finish_call(peer: Peer, call: Call, outcome: int, content: Any) -> None:
    mode = call.mode
    if mode == Mode.FETCH:
        reply(peer, call.call_id, outcome, content, last=True)
        return
    if mode == Mode.DO:
        if outcome == Outcome.ERROR:
            print(f"remote_do on process {peer.process.pid} failed:\n{content}", file=sys.stderr)
        return
    peer.process.store.finish(RRID(call.whence, call.id), outcome, content)
    if mode == Mode.WAIT:
        reply(peer, call.call_id, outcome, content if outcome == Outcome.ERROR else None, last=True)


def run_here(process: Process, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rrid: RRID | None) -> None:
    """A call of the process to itself, on an executor thread, by reference."""
    try:
        value = process.executor.interruptible(call_in_user_code, function, args, kwargs)
        if is_coroutine(value):
            value = process.coroutines.run(value)
        outcome = Outcome.VALUE
    except BaseException as error:
        value, outcome = captured.capture(error), Outcome.ERROR
    if rrid is not None:
        process.store.finish(rrid, outcome, value)
    elif outcome == Outcome.ERROR:
        print(f"remote_do on process {process.pid} failed:\n{value}", file=sys.stderr)


def reply(peer: Peer, call_id: int, outcome: int, content: Any, *, last: bool = False) -> None:
    """Send the end of a call or request. What cannot be pickled becomes an error; the connection stays.

    Args:
        last: with it the work that this thread has taken from the queue is done.
    """
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()
    try:
        if outcome == Outcome.VALUE and content is not None:
            try:
                body, buffers = peer.process.encode(content, peer.pid)
            except (SerializationError, KeyboardInterrupt) as error:
                outcome, content = Outcome.ERROR, captured.capture(error)
        if outcome != Outcome.VALUE:
            body, buffers = captured.dump(content)
        if last:
            peer.process.receiver.about_to_end()
        peer.send(new(Result, (call_id, outcome, body, buffers)))
    except TransportError:
        pass  # whoever asked is gone; nobody is left to tell


# ---- references -------------------------------------------------------------------------------------------------


def _on_request(peer: Peer, request: Request) -> None:
    peer.queue.append(partial(_run_request, peer, request))


def _run_request(peer: Peer, request: Request) -> None:
    store = peer.process.store
    rrid = RRID(request.whence, request.id)
    operation = request.operation
    if operation == Operation.PUT:
        try:
            (value,) = call_in_user_code(payload.loads, (request.body, request.buffers), {})
            store.put(rrid, value)
        except BaseException as error:
            reply(peer, request.call_id, Outcome.ERROR, captured.capture(error))
        else:
            reply(peer, request.call_id, Outcome.VALUE, None)
    elif operation == Operation.IS_READY:
        reply(peer, request.call_id, Outcome.VALUE, store.requested(rrid).done)
    else:
        store.requested(rrid).add_callback(partial(_answer, peer, request.call_id, operation))


def _answer(peer: Peer, call_id: int, operation: int, entry: Completion) -> None:
    """A value that a request waits for is there."""
    wanted = operation == Operation.FETCH or entry.outcome == Outcome.ERROR
    reply(peer, call_id, entry.outcome, entry.content if wanted else None)


def _on_claims(peer: Peer, message: Claims) -> None:
    peer.process.store.change(message.changes)


# ---- functions --------------------------------------------------------------------------------------------------


def _on_define(peer: Peer, message: Define) -> None:
    peer.functions_in.define(message.key, message.body, message.buffers)


def _on_started(peer: Peer, message: Started) -> None:
    completion = peer.pending.get(message.call_id)
    if completion is not None:
        completion.started = True


def _on_forget(peer: Peer, message: Forget) -> None:
    peer.functions_in.forget(message.key)


# ---- membership -------------------------------------------------------------------------------------------------


def _on_join(peer: Peer, message: Join) -> None:
    peer.process.links.joining(peer, payload.loads(message.body))


def _on_joined(peer: Peer, message: Joined) -> None:
    peer.process.links.joined(peer, payload.loads(message.body))


def _on_identify(peer: Peer, message: Identify) -> None:
    peer.process.links.identified(peer, payload.loads(message.body))


def _on_members(peer: Peer, message: Members) -> None:
    _only_from_driver(peer, message)
    peer.process.membership.replace(payload.loads(message.body))


def _on_left(peer: Peer, message: Left) -> None:
    _only_from_driver(peer, message)
    fields = payload.loads(message.body)
    reason: ExitReason = fields["reason"]
    peer.process.links.left(fields["pid"], reason)


def _on_leave(peer: Peer, message: Leave) -> None:
    _only_from_driver(peer, message)
    process = peer.process
    process.leaving.set()
    if process.receiver.main_is_running():
        # A call holds the main thread, perhaps for ever. Leaving must not depend on it.
        process.spawn(_leave_at_once, "hybriddist-leaving")
    else:
        process.receiver.close(0)


def _leave_at_once() -> None:
    with contextlib.suppress(OSError, ValueError):  # the driver reads no more: leave all the same
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _only_from_driver(peer: Peer, message: object) -> None:
    if peer.pid != DRIVER:
        raise RemoteProtocolError(f"process {peer.pid} sent {type(message).__name__}, which only the driver may")


TABLE: Final[Mapping[type, Callable[[Any, Any], None]]] = {
    Call: _on_call,
    Request: _on_request,
    Claims: _on_claims,
    Define: _on_define,
    Forget: _on_forget,
    Started: _on_started,
    Join: _on_join,
    Joined: _on_joined,
    Identify: _on_identify,
    Members: _on_members,
    Left: _on_left,
    Leave: _on_leave,
}
