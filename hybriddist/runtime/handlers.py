"""What each message means to the process that receives it.

Handlers run on whichever thread receives, in the order of the messages, and must not block: what runs user code or
pickles (calls, requests) is queued for an executing thread. `TABLE` maps each message class to its handler.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core import captured, payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.functions import ReceivedFunction
from hybriddist.core.messages import (
    Call,
    Cancel,
    ChannelOperation,
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
    Started,
)
from hybriddist.errors import RemoteProtocolError
from hybriddist.ids import DRIVER, RRID
from hybriddist.runtime.cancelling import cancel_reference, drop_or_interrupt
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.execution import call_in_user_code
from hybriddist.runtime.replies import reply
from hybriddist.runtime.running import Each, run_call
from hybriddist.runtime.shared_functions import ReceivedHandle

if TYPE_CHECKING:
    from hybriddist.runtime.peer import Peer


MAX_EACH: Final = 1 << 16
"""Calls of one message."""

_FIRST_CHANNEL_OPERATION: Final = int(ChannelOperation.PUT)


# ---- calls ------------------------------------------------------------------------------------------------------


def _on_call(peer: Peer, call: Call) -> None:
    mode = call.mode
    if mode == Mode.EACH:
        _on_each(peer, call)
        return
    entry = None
    if mode == Mode.STORE or mode == Mode.WAIT:
        entry = peer.process.store.created(RRID(call.whence, call.id))
    # Looked up now: the function may be forgotten before the call's turn comes.
    key = call.function_key
    peer.queue.append(partial(run_call, peer, call, peer.functions_in.find(key) if key else None, entry))


def _on_each(peer: Peer, call: Call) -> None:
    if not 0 < call.id <= MAX_EACH:
        raise RemoteProtocolError(f"a message with {call.id} calls in it; from 1 to {MAX_EACH} are allowed")
    key = call.function_key
    each = Each(peer, call, peer.functions_in.find(key) if key else None)
    peer.queue.append(each)


def _on_started(peer: Peer, message: Started) -> None:
    completion = peer.pending.get(message.call_id)
    if completion is not None:
        completion.begin()


def _on_cancel(peer: Peer, message: Cancel) -> None:
    waiting = peer.requests.pop(message.call_id, None)
    if waiting is not None:
        waiting.withdraw()
    else:
        # At the head: what is to be dropped may be the very next in the queue.
        peer.queue.appendleft(partial(drop_or_interrupt, peer, message.call_id))


# ---- references -------------------------------------------------------------------------------------------------


def _on_request(peer: Peer, request: Request) -> None:
    operation = request.operation
    if operation >= _FIRST_CHANNEL_OPERATION:
        peer.process.channels.request(peer, request)
    elif operation == Operation.CANCEL:
        # At the head: what is to be dropped may be the very next in the queue.
        peer.queue.appendleft(partial(_run_cancel, peer, request))
    elif operation == Operation.PUT:
        peer.queue.append(partial(_run_put, peer, request))
    else:
        # Looked up now, before claims that come after it: the asker may give the reference up before the request's
        # turn comes, and an entry that was made after that would never go. What follows may pickle, so it is queued.
        entry = peer.process.store.requested(RRID(request.whence, request.id))
        peer.queue.append(partial(_run_inquiry, peer, request, [entry]))


def _run_cancel(peer: Peer, request: Request) -> None:
    reply(peer, request.call_id, Outcome.VALUE, cancel_reference(peer.process, RRID(request.whence, request.id)))


def _run_put(peer: Peer, request: Request) -> None:
    try:
        (value,) = call_in_user_code(payload.loads, (request.body, request.buffers), {})
        peer.process.store.put(RRID(request.whence, request.id), value)
    except BaseException as error:
        reply(peer, request.call_id, Outcome.ERROR, captured.capture(error))
    else:
        reply(peer, request.call_id, Outcome.VALUE, None)


def _run_inquiry(peer: Peer, request: Request, holder: list[Completion]) -> None:
    entry = holder.pop()  # so that the queue's item, which may live until the next one comes, does not keep the value
    if request.operation == Operation.IS_READY:
        reply(peer, request.call_id, Outcome.VALUE, entry.done)
    else:
        entry.add_callback(partial(_answer, peer, request.call_id, request.operation))


def _answer(peer: Peer, call_id: int, operation: int, entry: Completion) -> None:
    """A value that a request waits for is there."""
    wanted = operation == Operation.FETCH or entry.outcome == Outcome.ERROR
    reply(peer, call_id, entry.outcome, entry.content if wanted else None)


def _on_claims(peer: Peer, message: Claims) -> None:
    peer.process.store.change(message.changes)


# ---- functions --------------------------------------------------------------------------------------------------


def _on_define(peer: Peer, message: Define) -> None:
    if message.is_handle:
        handle = ReceivedHandle(message.body)
        peer.queue.append(partial(_arrive, [handle]))  # also if it is forgotten before it is called
        peer.functions_in.define(message.key, handle)
    else:
        peer.functions_in.define(message.key, ReceivedFunction(message.body, message.buffers))


def _arrive(holder: list[ReceivedHandle]) -> None:
    holder.pop().arrive()  # as in `_run_inquiry`


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
    Cancel: _on_cancel,
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
