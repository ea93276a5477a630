"""`Channel`: a bounded queue between threads, and, behind a `RemoteChannel`, between processes.

The queue itself is a `Fifo` (``core/fifo.py``); here are the lock around it, those who wait, and the rule by which
thread each is told::

    a thread of this process ── Waiter ──┐               ┌── completed: the thread wakes
                                         ├─ Fifo: events ┤
    a request of another one ── Asker ───┘               └── answered: at once, or on an executing thread if the
                                                             item has to be pickled and might run user code for that

No thread blocks for those who ask from other processes. An item that came from another process stays pickled until
somebody here wants it; to a third process it is passed on as it is.

What this module does not know: messages, and how references find their channel (``runtime/channel_requests.py``).
"""

from __future__ import annotations

import math
import sys
from _thread import allocate_lock
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core import payload
from hybriddist.core.fifo import CLOSED, DONE, Event, Fifo
from hybriddist.deadline import NEVER, Deadline
from hybriddist.errors import DeserializeError, InvalidStateException
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.context import known
from hybriddist.transport import Buffer

if TYPE_CHECKING:
    from hybriddist.runtime.peer import Peer

_PLAIN: Final = frozenset({int, float, bool, complex, type(None), str, bytes})

_Operation = Callable[..., list[Event]]

_PLAIN_ITEMS: Final = 32
_PLAIN_DEPTH: Final = 3
"""What is larger or deeper is not looked through: that would take as long as to hand it to another thread."""


class Packed:
    """An item that came from another process, still pickled."""

    __slots__ = ("body", "buffers", "lent", "opened", "value")

    def __init__(self, body: Buffer, buffers: Sequence[Buffer]) -> None:
        self.body = body
        self.buffers = buffers
        self.lent = False
        """Its memory has been sent to somebody, perhaps not wholly yet, and the item stays here (a fetch)."""
        self.opened = False
        self.value: Any = None

    def open(self) -> Any:
        """The item; runs user code when first called. Several threads get the same object."""
        body, buffers = self.body, self.buffers
        if self.opened:
            return self.value
        value = payload.loads(body, [bytearray(buffer) for buffer in buffers] if self.lent else buffers)
        if not self.opened:
            self.value = value
            self.opened = True
            self.body, self.buffers = b"", ()
        return self.value


class Waiter(Completion):
    """A thread of this process that waits in a channel; ends with DONE and the item, or with CLOSED."""

    __slots__ = ()


class Asker:
    """A request of another process that waits in a channel."""

    __slots__ = ("peer",)

    peer: Peer

    def answer(self, outcome: int, item: Any) -> bool:
        """Tell the other process. Runs on any thread, the receiving one included: neither blocks nor runs user code.

        Returns:
            False if that is not possible: `answer_slowly` has to be called, on an executing thread.
        """
        raise NotImplementedError

    def answer_slowly(self, item: Any) -> None:
        """Tell the other process: pickles, and may wait."""
        raise NotImplementedError


class Channel:
    """A bounded queue of items between threads. In a `RemoteChannel` it also serves other processes.

    Args:
        capacity: how many items it holds before `put` waits; 0: `put` waits until the item is taken; `math.inf`: no
            limit.
        type: items must be instances of this class.

    It holds the objects themselves: an object that is changed after `put` is taken changed. Pickled, it is copied with
    its contents; to share one with other processes, make a `RemoteChannel`.

    Raises:
        TypeError, ValueError: of the arguments.

    Example::

        c = hd.Channel(2)
        c.put("a").put("b")
        c.take()                            # "a"
        c.close()
        list(c)                             # ["b"]

    Source: Julia's ``Channel``.
    """

    def __init__(self, capacity: float = 0, type: type = object) -> None:
        self._fifo = Fifo(check_capacity(capacity))
        self.type = check_type(type)
        self._lock = allocate_lock()
        self.hot: Any = None
        """The peer that asked for something last: the one from which something is likely to come."""

    @property
    def capacity(self) -> float:
        """How many items it holds before `put` waits."""
        return self._fifo.capacity

    # ---- operations -------------------------------------------------------------------------------------------

    def put(self, item: Any, *, timeout: float | None = None) -> Channel:
        """Add an item; waits while the channel is full. The channel itself.

        Raises:
            TimeoutError: no room within ``timeout`` seconds; the item is not in the channel.
            InvalidStateException: the channel is closed.
            TypeError: the item is not of the channel's type.
        """
        self.check(item)
        self._wait_or_withdraw("room", timeout, self._fifo.put, Waiter(), item)
        return self

    def take(self, *, timeout: float | None = None) -> Any:
        """Remove and return the oldest item; waits while there is none. Nobody else gets that item.

        Raises:
            TimeoutError: none within ``timeout`` seconds; none is lost.
            InvalidStateException: the channel is closed, and empty.
            DeserializeError: the item came from another process and cannot be rebuilt here; it is gone.
        """
        waiter = Waiter()
        try:
            self._wait_for("item", timeout, self._fifo.take, waiter)
            item = waiter.content
            return item.open() if item.__class__ is Packed else item
        except DeserializeError:
            raise
        except BaseException:
            if not self.withdraw(waiter):  # an item is here, or on its way from another thread
                waiter.add_callback(self._give_back_what_came)
            raise

    def fetch(self, *, timeout: float | None = None) -> Any:
        """Return the oldest item and leave it in the channel; waits while there is none.

        Raises:
            TimeoutError, InvalidStateException, DeserializeError: as `take`; the last leaves the item in its place.
            InvalidStateException: the channel is unbuffered: there is no place for an item to be looked at.
        """
        self.check_fetch()
        waiter = Waiter()
        self._wait_or_withdraw("item", timeout, self._fifo.read, waiter, True)
        item = waiter.content
        return item.open() if item.__class__ is Packed else item

    def wait(self, *, timeout: float | None = None) -> Channel:
        """Wait until there is an item; the channel itself. Somebody else may take it at once.

        Raises:
            TimeoutError, InvalidStateException: as `take`.
        """
        self._wait_or_withdraw("item", timeout, self._fifo.read, Waiter(), False)
        return self

    def isready(self) -> bool:
        """Whether there is an item now (in an unbuffered channel: whether somebody waits to put one)."""
        return self._fifo.is_ready()

    def isempty(self) -> bool:
        """Whether there is no item now."""
        return not self._fifo.is_ready()

    def isopen(self) -> bool:
        """Whether the channel is not closed."""
        return self._fifo.is_open

    def close(self) -> None:
        """Accept no more items; those in the channel can still be taken. Who waits gets an InvalidStateException."""
        self.begin(self._fifo.close)

    def __iter__(self) -> Iterator[Any]:
        """Take items until the channel is closed and empty."""
        while True:
            try:
                item = self.take()
            except InvalidStateException:
                return
            yield item

    def __len__(self) -> int:
        """How many items it holds."""
        return len(self._fifo.items)

    def __bool__(self) -> bool:
        """A channel is true, also while it is empty."""
        return True

    def __getitem__(self, index: Any) -> Any:
        """An element of the oldest item, which stays; ``c[()]`` is the item."""
        item = self.fetch()
        return item if index.__class__ is tuple and not index else item[index]

    # ---- for both sides ---------------------------------------------------------------------------------------

    def check(self, item: Any) -> None:
        """See that an item is of the channel's type."""
        if self.type is not object:
            check_item(item, self.type)

    def check_fetch(self) -> None:
        """See that items can be looked at."""
        if not self._fifo.capacity:
            raise InvalidStateException("fetch is not supported on an unbuffered channel: take, or give it a capacity")

    @property
    def fifo(self) -> Fifo:
        """For `begin`."""
        return self._fifo

    def begin(self, operation: _Operation, *args: Any) -> None:  # shielded
        """Do an operation of the queue, and see that all whom it concerns are told."""
        with self._lock:
            events = operation(*args)
        self._tell(events)
        process = known()
        if process is not None and process.guard.pending:
            process.guard.deliver()

    def withdraw(self, ticket: Any) -> bool:
        """Take somebody who waits out of the line; False if he does not wait (any more)."""
        with self._lock:
            return self._fifo.withdraw(ticket)

    def give_back(self, item: Any, ticket: Any) -> None:
        """Make an item that was taken with ``ticket`` the oldest one again."""
        self.begin(self._fifo.give_back, item, ticket)

    def waiting(self) -> int:
        """How many threads and processes wait in this channel."""
        return self._fifo.waiting()

    # ---- inside -----------------------------------------------------------------------------------------------

    def _wait_or_withdraw(self, what: str, timeout: float | None, operation: _Operation, *args: Any) -> None:
        try:
            self._wait_for(what, timeout, operation, *args)
        except BaseException:
            self.withdraw(args[0])
            raise

    def _wait_for(self, what: str, timeout: float | None, operation: _Operation, *args: Any) -> None:
        """Do an operation and wait for the end of its ticket, a `Waiter`; it may still wait if an exception is raised.

        A thread that waits receives itself, so that what comes from another process costs no switch of threads.
        """
        waiter: Waiter = args[0]
        deadline = NEVER if timeout is None else Deadline(timeout)
        self.begin(operation, *args)
        if not waiter.done:
            process = known()
            if process is None:
                waiter.wait(deadline)
            else:
                process.wait_here(waiter, self.hot, deadline)
            if not waiter.done and self.withdraw(waiter):
                raise TimeoutError(f"no {what} within {timeout} seconds in {self!r}")
            waiter.wait()  # if it was too late to withdraw: it is being told at this moment
        if waiter.outcome == CLOSED:
            raise closed(self)

    def _give_back_what_came(self, waiter: Completion) -> None:
        if waiter.outcome == DONE:
            self.give_back(waiter.content, waiter)

    def _tell(self, events: list[Event]) -> None:
        """Tell everybody, in order. From the first on who has to be told on an executing thread, the rest go there."""
        for number, (ticket, outcome, item) in enumerate(events):
            if ticket.__class__ is Waiter:
                ticket.complete(outcome, item)
            elif not ticket.answer(outcome, item):
                process = ticket.peer.process
                process.executor.submit(lambda rest=events[number:]: self._tell_slowly(rest))
                return

    def _tell_slowly(self, events: list[Event]) -> None:
        ticket, _, item = events[0]
        try:
            ticket.answer_slowly(item)
        finally:
            self._tell(events[1:])

    def __repr__(self) -> str:
        kind = "" if self.type is object else f", type={self.type.__name__}"
        state = "" if self.isopen() else ", closed"
        return f"Channel({self.capacity}{kind}: {len(self)} items{state})"

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            items = list(self._fifo.items)
        opened = [item.open() if item.__class__ is Packed else item for item in items]
        return _copy, (self.capacity, self.type, opened, self.isopen())


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether pickling ``value`` runs no user code, imports nothing and takes no time to speak of."""
    kind = value.__class__
    if kind in _PLAIN:
        return True
    if kind in (tuple, list):
        return (
            depth < _PLAIN_DEPTH and len(value) <= _PLAIN_ITEMS and all([is_plain(each, depth + 1) for each in value])
        )
    if kind is dict:
        return depth < _PLAIN_DEPTH and len(value) <= _PLAIN_ITEMS and (
            all([is_plain(each, depth + 1) for pair in list(value.items()) for each in pair])
        )  # fmt: skip
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    if kind is numpy.ndarray:
        flags = value.flags
        return flags.writeable and (flags.c_contiguous or flags.f_contiguous) and value.dtype.kind in "biufc"
    return issubclass(kind, numpy.number) and kind.__module__ == "numpy"


def check_capacity(capacity: Any) -> float:
    """``capacity``, if it is one.

    Raises:
        TypeError, ValueError: it is not a whole number of 0 and more, nor `math.inf`.
    """
    if capacity == math.inf and isinstance(capacity, float):
        return math.inf
    if isinstance(capacity, bool) or not hasattr(capacity, "__index__"):
        raise TypeError(f"a channel's capacity is a whole number or math.inf, not {capacity!r}")
    number: int = capacity.__index__()
    if number < 0:
        raise ValueError(f"a channel's capacity is 0 or more, not {number}")
    return number


def check_type(kind: Any) -> type:
    """``kind``, if it is a class.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(kind, type):
        raise TypeError(f"a channel's type is a class, not {kind!r}")
    return kind


def check_item(item: Any, kind: type) -> None:
    """See that an item may be put into a channel of ``kind``.

    Raises:
        TypeError: it may not.
    """
    if not isinstance(item, kind):
        raise TypeError(f"this channel takes items of type {kind.__name__}, not {type(item).__name__}")


def closed(channel: Any) -> InvalidStateException:
    """The exception of operations on a closed channel."""
    return InvalidStateException(f"the channel is closed: {channel!r}", state="closed")


def _copy(capacity: float, kind: type, items: Sequence[Any], is_open: bool) -> Channel:
    channel = Channel(capacity, kind)
    channel.fifo.items.extend(items)
    channel.fifo.is_open = is_open
    return channel
