"""Channels as their owner serves them to other processes: what a `Request` with a `ChannelOperation` does.

A request comes on the thread that receives. If the store has a `Channel` of ours, that is all there is to it::

    request ──► Channel ─┬─ can be served: answered at once
                         └─ cannot yet: an Asker waits in line, and in `peer.requests`
    Cancel, or the end of the connection ──► the Asker is withdrawn

Neither of it runs user code or blocks; what would (items to unpickle for a type check, objects of the user's own as
backing stores) is queued for an executing thread, with the Asker in `peer.requests` all the same. A store of the
user's own cannot be stopped: the Asker is answered as soon as it is withdrawn, and what the store then brings is kept
for the next taker, or dropped.

What this module does not know: how a process asks (``channel.py``), and how a queue works (``core/fifo.py``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core import captured, payload
from hybriddist.core.fifo import CLOSED, DONE
from hybriddist.core.messages import MAY_CREATE, ChannelOperation, Outcome, Request, Result, new
from hybriddist.errors import InvalidStateException, RemoteProtocolError, SerializationError, TransportError
from hybriddist.ids import RRID
from hybriddist.runtime.channels import Asker, Channel, Packed, Waiter, is_plain
from hybriddist.runtime.execution import call_in_user_code
from hybriddist.runtime.keeper import Keeper
from hybriddist.runtime.replies import reply

if TYPE_CHECKING:
    from hybriddist.runtime.completion import Completion
    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process

_PUT: Final = int(ChannelOperation.PUT)
_PUT_REFERENCES: Final = int(ChannelOperation.PUT_REFERENCES)
_PUT_SEVERAL: Final = int(ChannelOperation.PUT_SEVERAL)
_TAKE: Final = int(ChannelOperation.TAKE)
_FETCH: Final = int(ChannelOperation.FETCH)
_WAIT: Final = int(ChannelOperation.WAIT)
_IS_READY: Final = int(ChannelOperation.IS_READY)
_IS_EMPTY: Final = int(ChannelOperation.IS_EMPTY)
_IS_OPEN: Final = int(ChannelOperation.IS_OPEN)
_CLOSE: Final = int(ChannelOperation.CLOSE)
_INDEX: Final = int(ChannelOperation.INDEX)
_GIVE_BACK: Final = int(ChannelOperation.GIVE_BACK)
_VALUE: Final = int(Outcome.VALUE)

_VERBS: Final = {
    _TAKE: "take", _FETCH: "fetch", _WAIT: "wait", _IS_READY: "isready", _IS_EMPTY: "isempty", _IS_OPEN: "isopen",
    _CLOSE: "close",
}  # fmt: skip


_QUESTIONS: Final = (_IS_READY, _IS_EMPTY, _IS_OPEN, _CLOSE)


class RequestAsker(Asker):
    """One request that is not answered yet.

    Attributes:
        withdrawn: nobody wants the answer any more; for requests that no line of a channel knows.
    """

    __slots__ = ("_forsake", "call_id", "channel", "operation", "withdrawn")

    def __init__(self, peer: Peer, call_id: int, operation: int, channel: Channel | None) -> None:
        self.peer = peer
        self.call_id = call_id
        self.operation = operation
        self.channel = channel
        self.withdrawn = False
        self._forsake: list[Callable[[], None]] | None = None
        """What to do when it is withdrawn while a store of the user's own is at it: whoever gets it out answers."""

    def answer(self, outcome: int, item: Any) -> bool:
        if outcome == CLOSED:
            self.post(Outcome.CLOSED)
            return True
        operation = self.operation
        if operation in (_PUT, _WAIT):
            self.post(_VALUE)
            return True
        if item.__class__ is Packed and not item.opened:
            if operation == _FETCH:
                item.lent = True
            self.post(_VALUE, item.body, item.buffers, item)
            return True
        value = item.value if item.__class__ is Packed else item
        if not is_plain(value):
            return False
        try:
            body, buffers = payload.dumps(value)
        except SerializationError:
            return False
        self.post(_VALUE, body, buffers, item, borrowed=bool(buffers))
        return True

    def answer_slowly(self, item: Any) -> None:
        peer = self.peer
        peer.requests.pop(self.call_id, None)
        try:
            if self.operation == _INDEX:
                raise AssertionError  # its ticket is a Waiter
            taken_from = self.channel if self.operation == _TAKE else None
            unsent = None if taken_from is None else partial(taken_from.give_back, item, self)
            reply(peer, self.call_id, _VALUE, item.open() if item.__class__ is Packed else item, unsent=unsent)
        except BaseException as error:
            reply(peer, self.call_id, Outcome.ERROR, captured.capture(error))

    def post(
        self, outcome: int, body: Any = b"", buffers: Any = (), item: Any = None, *, borrowed: bool = False
    ) -> None:
        """Send the answer without waiting. An item whose taker is known to be gone is given back."""
        peer = self.peer
        peer.requests.pop(self.call_id, None)
        try:
            peer.post(new(Result, (self.call_id, outcome, body, buffers, 0)), borrowed=borrowed)
        except TransportError:
            if self.operation == _TAKE and outcome == _VALUE and self.channel is not None:
                self.channel.give_back(item, self)

    def withdraw(self) -> None:
        """The answer is not wanted any more: the request is as if it had never come, unless it is too late."""
        self.withdrawn = True
        if self._forsake:
            try:
                forsake = self._forsake.pop()
            except IndexError:
                return  # the store has ended just now
            forsake()
            self.post(Outcome.CANCELLED)
        if self.channel is not None and self.channel.withdraw(self):
            self.post(Outcome.CANCELLED)

    def begin_at_store(self, forsake: Callable[[], None]) -> bool:
        """A store of the user's own is about to be at it: from now on `withdraw` calls ``forsake``, and answers.

        Returns:
            Whether the answer is wanted. Not `withdrawn`: who has set that may yet come too late.
        """
        self._forsake = [forsake]
        if self.withdrawn:  # before it could tell whom
            self.withdraw()
        return bool(self._forsake)

    def is_unanswered(self) -> bool:
        """Whether the answer is still to be sent, by the caller. To be asked once, when all else is done."""
        if self._forsake is None:
            return True
        try:
            self._forsake.pop()
        except IndexError:
            return False  # it was withdrawn, and answered
        return True


class ChannelRequests:
    """Serves the channels of one process to the others."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def backing(self, rrid: RRID, *, create: bool) -> Channel | Keeper:
        """The channel of a reference; with ``create`` one of capacity 1 is made if there is none.

        Raises:
            InvalidStateException: there is none.
        """
        entry = self._process.store.peek(rrid)
        if create and (entry is None or not entry.done):
            entry = self._process.store.made(rrid, Channel(1))
        backing = None if entry is None else entry.content
        if not isinstance(backing, Channel | Keeper):
            text = f"the reference was released: there is no channel behind {rrid} any more"
            raise InvalidStateException(text, state="released")
        return backing

    def request(self, peer: Peer, request: Request) -> None:
        """Serve one request. Runs on the thread that receives."""
        call_id, operation, whence, id_, body, buffers = request
        entry = self._process.store.peek((whence, id_))
        channel = entry.content if entry is not None else None
        operation &= ~MAY_CREATE
        if channel.__class__ is not Channel or operation == _INDEX:
            self._queue(peer, request, None)
            return
        asker = RequestAsker(peer, call_id, operation, channel)
        channel.hot = peer
        fifo = channel.fifo
        if operation == _PUT and channel.type is object:
            self._wait_in_line(asker, channel, fifo.put, asker, Packed(body, buffers))
        elif operation == _TAKE and not body:
            self._wait_in_line(asker, channel, fifo.take, asker)
        elif operation == _FETCH and not body and channel.capacity:
            self._wait_in_line(asker, channel, fifo.read, asker, True)
        elif operation == _WAIT:
            self._wait_in_line(asker, channel, fifo.read, asker, False)
        elif operation in _QUESTIONS and not body:
            asker.post(_VALUE, payload.dumps(getattr(channel, _VERBS[operation])())[0])
        else:
            self._queue(peer, request, channel)

    def _wait_in_line(self, asker: RequestAsker, channel: Channel, operation: Callable[..., Any], *args: Any) -> None:
        # Before the operation: its end takes the entry away again, on whichever thread that is.
        requests = asker.peer.requests
        requests[asker.call_id] = asker
        channel.begin(operation, *args)
        if asker.peer.lost is not None and requests.pop(asker.call_id, None) is not None:
            asker.withdraw()  # it was lost before it could see this request

    # ---- what may run user code -------------------------------------------------------------------------------

    def _queue(self, peer: Peer, request: Request, channel: Channel | None) -> None:
        asker = RequestAsker(peer, request.call_id, request.operation & ~MAY_CREATE, None)
        peer.requests[request.call_id] = asker
        peer.queue.append(partial(self._run, asker, request))

    def _run(self, asker: RequestAsker, request: Request) -> None:
        peer, call_id = asker.peer, request.call_id
        unsent = None
        try:
            if asker.withdrawn:
                payload.decline(request.body, request.buffers)
                reply(peer, call_id, Outcome.CANCELLED, None)
                return
            rrid = RRID(request.whence, request.id)
            try:
                backing = self.backing(rrid, create=bool(request.operation & MAY_CREATE))
            except InvalidStateException:
                payload.decline(request.body, request.buffers)
                raise
            content = call_in_user_code(payload.loads, (request.body, request.buffers), {}) if request.body else ()
            if isinstance(backing, Channel):
                self._run_on_channel(asker, backing, content)
                return
            outcome, value = _VALUE, self._run_on_keeper(asker, backing, content)
            if asker.operation == _TAKE:
                unsent = partial(backing.give_back, content, value)
        except BaseException as error:
            outcome, value = int(Outcome.ERROR), captured.capture(error)
        peer.requests.pop(call_id, None)
        if asker.is_unanswered():
            reply(peer, call_id, outcome, value, unsent=unsent)

    def _run_on_channel(self, asker: RequestAsker, channel: Channel, content: Any) -> None:
        """An operation of our own kind of channel that was not served at once."""
        fifo, operation = channel.fifo, asker.operation
        if operation in (_PUT, _PUT_REFERENCES):
            channel.check(content)
            asker.operation = _PUT
            self._join_line(asker, channel, fifo.put, content)
        elif operation == _TAKE and not content:
            self._join_line(asker, channel, fifo.take)
        elif operation == _FETCH and not content:
            channel.check_fetch()
            self._join_line(asker, channel, fifo.read, True)
        elif operation == _WAIT and not content:
            self._join_line(asker, channel, fifo.read, False)
        elif operation == _INDEX:
            channel.check_fetch()
            waiter = IndexWaiter(asker, channel)
            asker.peer.requests[asker.call_id] = waiter
            waiter.add_callback(partial(_answer_index, waiter, content))
            channel.begin(fifo.read, waiter, True)
        elif operation == _GIVE_BACK:
            asker.peer.requests.pop(asker.call_id, None)
            channel.give_back(content[1], asker)
            reply(asker.peer, asker.call_id, _VALUE, None)
        elif operation == _PUT_SEVERAL or content:
            verb = _VERBS.get(operation, "put")
            raise TypeError(f"{verb} on a Channel takes {'one item' if verb == 'put' else 'no arguments'}: {content!r}")
        else:
            asker.peer.requests.pop(asker.call_id, None)
            value = getattr(channel, _VERBS[operation])()
            reply(asker.peer, asker.call_id, _VALUE, value)

    def _join_line(self, asker: RequestAsker, channel: Channel, operation: Callable[..., Any], *args: Any) -> None:
        asker.channel = channel
        self._wait_in_line(asker, channel, operation, asker, *args)
        if asker.withdrawn:  # perhaps before it was in the line
            asker.withdraw()

    def _run_on_keeper(self, asker: RequestAsker, keeper: Keeper, content: Any) -> Any:
        operation = asker.operation
        if operation == _TAKE:
            taking, run = keeper.begin(content)
            asker.begin_at_store(partial(keeper.forsake, taking))
            call_in_user_code(run, (), {})  # also if it has been withdrawn: somebody else may wait for it by now
            return taking.result()
        if operation == _GIVE_BACK:
            keeper.give_back(*content)
            return None
        if not asker.begin_at_store(_nothing):
            return None
        if operation in (_PUT, _PUT_REFERENCES):
            call_in_user_code(keeper.call, ("put", (content,)), {})
        elif operation == _PUT_SEVERAL:
            call_in_user_code(keeper.call, ("put", content), {})
        elif operation == _INDEX:
            item = call_in_user_code(keeper.call, ("fetch", ()), {})
            return call_in_user_code(operator.getitem, (item, _index(content)), {})
        elif operation in _VERBS:
            value = call_in_user_code(keeper.call, (_VERBS[operation], content), {})
            return None if operation in (_WAIT, _CLOSE) else value
        else:
            raise RemoteProtocolError(f"there is no operation {operation} on a channel")
        return None


class IndexWaiter(Waiter):
    """Waits for an item of which only an element is wanted."""

    __slots__ = ("asker", "channel")

    def __init__(self, asker: RequestAsker, channel: Channel) -> None:
        super().__init__()
        self.asker = asker
        self.channel = channel

    def withdraw(self) -> None:
        """As `RequestAsker.withdraw`."""
        if self.channel.withdraw(self):
            self.asker.post(Outcome.CANCELLED)

    def answer(self, outcome: int, item: Any) -> bool:
        """What a channel calls for tickets that are not just a `Waiter`."""
        self.complete(outcome, item)
        return True


def _answer_index(waiter: IndexWaiter, index: Any, _: Completion) -> None:
    waiter.asker.peer.process.executor.submit(partial(_run_index, waiter, index))


def _run_index(waiter: IndexWaiter, index: Any) -> None:
    asker, item = waiter.asker, waiter.content
    asker.peer.requests.pop(asker.call_id, None)
    if waiter.outcome != DONE:
        reply(asker.peer, asker.call_id, Outcome.CLOSED, None)
        return
    try:
        value = call_in_user_code(item.open, (), {}) if item.__class__ is Packed else item
        element = call_in_user_code(operator.getitem, (value, _index(index)), {})
    except BaseException as error:
        reply(asker.peer, asker.call_id, Outcome.ERROR, captured.capture(error))
    else:
        reply(asker.peer, asker.call_id, _VALUE, element)


def _nothing() -> None:
    """What there is to do when no item has been taken."""


def _index(indices: tuple[Any, ...]) -> Any:
    """``rr[i]`` and ``rr[i, j]`` send a tuple of indices each."""
    return indices[0] if len(indices) == 1 else indices
