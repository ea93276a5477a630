"""Running calls: unpickle, run, and do with the end what the call's mode says.

A call is run by the worker's main thread or by an executor thread, whoever takes it from the queue. While it runs,
that thread's *errand* says which call it is, so that a cancel (``cancelling.py``) finds it and no other.

What this module does not know: how messages arrive (``handlers.py``).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import monotonic, perf_counter_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core import captured, payload
from hybriddist.core.functions import ReceivedFunction
from hybriddist.core.messages import ANSWERED, MOST_NANOSECONDS, Call, EachFlag, Mode, Outcome, Started
from hybriddist.errors import DeserializeError, RemoteProtocolError, TransportError
from hybriddist.ids import RRID
from hybriddist.runtime.claims import IN_THE_MARGIN, Claim
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.context import this_process
from hybriddist.runtime.copies import end_copy
from hybriddist.runtime.execution import call_in_user_code
from hybriddist.runtime.replies import pack, reply, send

if TYPE_CHECKING:
    from hybriddist.runtime.coroutines import Running
    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process


Errand = tuple["Peer | None", int, int, int]
"""What a thread is at: whose call, its call id, and its reference (whence, id); None, 0: a call of our own."""

_VALUE: Final = int(Outcome.VALUE)

_DROPPED: Final = object()
"""Instead of the value of a call that nobody wanted any more before it had begun."""

KEPT: Final = (int(Mode.STORE), int(Mode.WAIT))
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
        finish_call(peer, call, entry, Outcome.ERROR, captured.capture(error))
        return
    if process.is_copy:
        end_copy(None)
    if type(value) is CoroutineType:
        _start_coroutine(peer, call, entry, value)
    elif mode & 0x0F:
        finish_call(peer, call, entry, Outcome.VALUE, value)
    else:
        packed = pack(peer, Outcome.VALUE, value)
        del value  # nobody is to see any more what is sent
        send(peer, call.call_id, packed, last=True)


def _perform_if_wanted(entry: Completion, call: Call, definition: ReceivedFunction | None) -> Any:
    """Looks only now, when the errand is known: a cancel before this is seen here, a later one finds the errand."""
    if entry.outcome == Outcome.CANCELLED:
        let_go(call)
        return None
    return perform(call, definition)


def perform(call: Call, definition: ReceivedFunction | None) -> Any:  # exposed
    """Unpickle and run: user code both."""
    body, buffers = call.body, call.buffers
    if definition is None:
        function, args, kwargs = _load(call)
    else:
        try:
            function = definition.load()
        except BaseException:
            let_go(call)
            raise
        if not body:
            return function()
        args, kwargs = _load(call)
    if call.whence < 0:
        args = _arguments(call, args)
    if buffers:
        # The message's own hold on large buffers ends here: they live as long as the arguments do.
        buffers.clear()  # type: ignore[attr-defined]  # a list, if there are any
    return function(*args, **kwargs)


def _arguments(call: Call, args: tuple[Any, ...]) -> Sequence[Any]:
    """The arguments of a call, whatever was left out of them."""
    return this_process().blocks.dress(args, -call.whence, call.id) if call.whence < 0 else args


def _load(call: Call) -> Any:
    try:
        return payload.loads(call.body, call.buffers)
    except DeserializeError:  # and so the claims in the pickle are given up
        _let_go_stripped(call)
        raise


def let_go(call: Call) -> None:
    """Give up the references that a dropped call has brought: their claims are ours since they were sent."""
    payload.decline(call.body, call.buffers)
    _let_go_stripped(call)


def _let_go_stripped(call: Call) -> None:
    """Likewise those of `Blocks.strip`, which are numbers among the arguments."""
    bits, owner = -call.whence, call.id
    if bits > 0:
        content, _ = payload.walk(call.body, call.buffers)  # (function, args, kwargs), or without the function
        for position, id_ in enumerate(content[-2] if content else ()):
            if bits >> position & 1:
                Claim(RRID(owner, id_), IN_THE_MARGIN, owner).decline()


def _start_coroutine(peer: Peer, call: Call, entry: Completion | None, coroutine: CoroutineType[Any, Any, Any]) -> None:
    running = peer.process.coroutines.start(coroutine, kept=call.mode in KEPT)
    if entry is not None:
        entry.add_callback(partial(_cancel_with, running))
    if call.mode & ANSWERED:
        peer.tasks.add(call.call_id, running)
    running.end.add_callback(partial(_finish_coroutine, peer, call, entry))


def _cancel_with(running: Running, entry: Completion) -> None:
    """The entry for a coroutine's value has ended. If only because nobody wants it, the coroutine goes on."""
    if entry.outcome == Outcome.CANCELLED:
        running.cancel()


def _finish_coroutine(peer: Peer, call: Call, entry: Completion | None, end: Completion) -> None:
    """Runs on the event loop's thread, which must not be held up by pickling and sending."""
    peer.process.executor.submit(partial(_finish_ended, partial(finish_call, peer, call, entry), end))


def _finish_ended(finish: Callable[[int, Any], None], end: Completion) -> None:
    if end.outcome == Outcome.ERROR:
        finish(Outcome.ERROR, captured.capture(end.content))
    else:
        finish(Outcome.VALUE, end.content)


def finish_call(peer: Peer, call: Call, entry: Completion | None, outcome: int, content: Any) -> None:
    mode = call.mode
    if mode == Mode.FETCH:
        reply(peer, call.call_id, outcome, content, last=True)
        return
    if mode == Mode.DO:
        if outcome == Outcome.ERROR:
            _show_failure(peer.process, content)
        return
    process = peer.process
    if entry is not None and entry.outcome == Outcome.CANCELLED:
        outcome, content = Outcome.CANCELLED, None
    elif outcome == Outcome.ERROR:
        content.drop_frames()
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

    finish = partial(_finish_here, process, rrid, ended)
    try:
        value = process.executor.interruptible(errand, run)
    except BaseException as error:
        finish(Outcome.ERROR, captured.capture(error))
        return
    if is_coroutine(value):
        running = process.coroutines.start(value)
        if entry is not None:
            entry.add_callback(partial(_cancel_with, running))
        running.end.add_callback(lambda end: process.executor.submit(partial(_finish_ended, finish, end)))
    else:
        finish(Outcome.VALUE, value)


def _finish_here(
    process: Process, rrid: RRID | None, ended: Callable[[], None] | None, outcome: int, content: Any
) -> None:
    if ended is not None:
        ended()
    if rrid is not None:
        if outcome == Outcome.ERROR:
            content.drop_frames()
        process.store.finish(rrid, outcome, content)
    elif outcome == Outcome.ERROR:
        _show_failure(process, content)


def _show_failure(process: Process, failure: Any) -> None:
    """Print why a `remote_do` failed: nobody else hears of it."""
    try:
        print(f"remote_do on process {process.pid} failed:\n{failure}", file=sys.stderr)
    except BaseException:
        pass  # stderr is closed, or is an object of the user's that raises: then nobody hears of it at all


# ---- several calls of one message -------------------------------------------------------------------------------


class Each:
    """Several calls of one message, run one after the other by whoever has the time.

    Usually that is the worker's main thread alone. When one of the calls takes long, whoever receives queues one piece
    of work for each that is left (`share`). From then on they are like calls that came alone: threads are added while
    one holds up the next. The items are taken from one queue, so each runs once.

    Whoever asked must be able to tell, when this process dies, which calls had begun. The rule: *of those that have no
    result and are not said to have begun (`Started`), at most the oldest has begun.* So a call that is not the oldest
    of its peer's calls without a result is announced before it begins.
    """

    def __init__(self, peer: Peer, call: Call, definition: ReceivedFunction | None) -> None:
        self._peer = peer
        self._call = call
        self._definition = definition
        self._function: Any = None
        self._items: deque[tuple[int, tuple[Any, ...]]] = deque()
        self._dropped: set[int] = set()
        """Call ids that nobody wants any more."""
        self._shared = False
        self._announced = call.whence & EachFlag.ANNOUNCED
        self.is_patient = bool(call.whence & EachFlag.PATIENT)
        self._ends = count(1)
        """Counts the calls that need no announcement any more: each has a result, or was announced."""
        peer.each.append(self)

    def __call__(self) -> None:
        """Run them, one after the other, for as long as none takes long."""
        peer = self._peer
        receiver = peer.process.receiver
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
        del items
        is_main = receiver.is_main()
        if len(self._items) > 1:
            receiver.batches[self] = self.left(), monotonic()
        if not is_main:
            peer.process.poller.wake()  # whoever receives shall look after it
        while self._items and (is_main or not self._shared):
            self._run_next(is_main=is_main)
            receiver.progress += is_main
        receiver.batches.pop(self, None)

    def left(self) -> int:
        """How many have not begun."""
        return len(self._items)

    def share(self) -> None:
        """Queue what is left for whoever has the time. It came before all that is in the queue."""
        self._peer.process.receiver.batches.pop(self, None)
        if not self._shared:
            self._shared = True  # before another thread can take one: whoever begins one after that announces it
            # An object each: who looks whether the queue moves compares what heads it.
            self._peer.queue.extendleft([partial(self._run_shared) for _ in range(len(self._items))])

    def _run_shared(self) -> None:
        self._run_next(is_main=self._peer.process.receiver.is_main())

    def _run_next(self, *, is_main: bool) -> None:
        try:
            number, args = self._items.popleft()
        except IndexError:
            return  # who began with them, and takes them without their pieces of work, was faster
        self._run_one(number, args, is_main=is_main)
        del args
        if next(self._ends) == self._call.id:
            self._peer.each.remove(self)

    def has(self, call_id: int) -> bool:
        """Whether this call is one of ours."""
        return self._call.call_id <= call_id < self._call.call_id + self._call.id

    def drop(self, call_id: int) -> None:
        """Do not begin this call, if it is one of ours."""
        if self.has(call_id):
            self._dropped.add(call_id)

    def drop_all(self) -> None:
        """Begin no more."""
        self._dropped.update(range(self._call.call_id, self._call.call_id + self._call.id))

    def call_if_wanted(self, number: int, args: tuple[Any, ...]) -> Any:  # exposed
        """Looks only now, when the errand is known: a cancel (or the end of the connection) before this is seen here, a
        later one finds the errand."""
        return _DROPPED if number in self._dropped or self._peer.lost is not None else self._function(*args)

    def _unpickle(self) -> tuple[Any, Any]:
        call = self._call
        content = payload.loads(call.body, call.buffers)
        if self._definition is None:
            return content  # type: ignore[no-any-return]
        return self._definition.load(), content

    def _run_one(self, number: int, args: tuple[Any, ...], *, is_main: bool) -> None:
        peer = self._peer
        process = peer.process
        announced = not is_main or self._shared or self._announced or peer.each[0] is not self
        if announced:
            _announce(peer, number)
        begun = perf_counter_ns()
        try:
            if is_main:
                process.receiver.errand = (peer, number, 0, 0)
                try:
                    value = self.call_if_wanted(number, args)
                finally:
                    process.receiver.errand = None
            else:
                value = process.executor.interruptible((peer, number, 0, 0), self.call_if_wanted, number, args)
        except BaseException as error:
            if process.is_copy:
                end_copy(error)
            reply(peer, number, Outcome.ERROR, captured.capture(error), last=not self._items)
            return
        if process.is_copy:
            end_copy(None)
        if value is _DROPPED:
            reply(peer, number, Outcome.CANCELLED, None, last=not self._items)
        elif type(value) is CoroutineType:
            if not announced:
                _announce(peer, number)  # it begins now, and has no result for a while
            call = self._call._replace(call_id=number, mode=Mode.FETCH)
            _start_coroutine(peer, call, None, value)
        else:
            nanoseconds = perf_counter_ns() - begun
            packed = pack(peer, _VALUE, value)
            del value  # as in `run_call`
            nanoseconds = nanoseconds if nanoseconds < MOST_NANOSECONDS else MOST_NANOSECONDS
            send(peer, number, packed, last=not self._items, nanoseconds=nanoseconds)


def _announce(peer: Peer, call_id: int) -> None:
    """Say that a call begins."""
    try:
        peer.send(Started(call_id))
    except TransportError:
        pass  # whoever asked is gone
