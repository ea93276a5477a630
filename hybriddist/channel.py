"""`RemoteChannel`: a handle to a channel that lives on one process and is used from all.

The handle is a reference, counted as futures are: the channel lives as long as some process has a handle. On the
channel's own process an operation acts on it directly and items are the objects themselves; from anywhere else it is a
request, answered when it can be served, and items are copies.

**Nothing is swallowed.** An operation that is given up (a timeout, Ctrl-C) is cancelled at the owner, who either takes
it out of the line or has answered already. In the latter case its answer counts; if nobody is there to return it to, an
item goes back to the front of the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from hybriddist.core import payload
from hybriddist.core.captured import CapturedException, capture
from hybriddist.core.messages import MAY_CREATE, ChannelOperation, Outcome
from hybriddist.deadline import NEVER, Deadline
from hybriddist.errors import HybridDistError, InvalidStateException, RemoteException
from hybriddist.ids import RRID, as_pid
from hybriddist.reference import DEAD, Reference
from hybriddist.runtime.asking import decline_value
from hybriddist.runtime.channels import Channel, check_item
from hybriddist.runtime.claims import claim
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.context import this_process
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.keeper import Keeper
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process

_NEEDED: Final = ("put", "take", "fetch", "isready", "wait")

_GRACE_SECONDS: Final = 1.0
"""How long a cancelled operation waits for the owner's word on whether it came too late."""

_PUT: Final = int(ChannelOperation.PUT)
_TAKE: Final = int(ChannelOperation.TAKE)
_WANT_ITEM: Final = (_TAKE, ChannelOperation.FETCH, ChannelOperation.WAIT)
_VALUE: Final = int(Outcome.VALUE)


class RemoteChannel(Reference):
    """A handle to a channel on some process.

    Args:
        factory_or_pid: makes the channel: it is called without arguments on the process, once, before this returns,
            and returns a `Channel` or any object with the methods put, take, fetch, isready and wait. A pid, or
            nothing: a channel for one item of any type.
        pid: where the channel is to live; this process by default.

    Attributes:
        where: the process on which the channel lives.
        type: what items must be instances of.

    Raises:
        RemoteException: the factory raised.
        TypeError: it returned something that is no channel.
        NoSuchProcessError, ProcessExitedException, TopologyError: the process cannot be reached.

    Example::

        jobs = hd.RemoteChannel(lambda: hd.Channel(32), 2)      # lives on worker 2
        jobs.put("a")
        jobs.take()                                             # "a"

    Operations on a closed channel raise `InvalidStateException`, inside of a `RemoteException` if the channel lives on
    another process. If that process is gone they raise `ProcessExitedException`.

    Source: Julia's Distributed, ``RemoteChannel``.
    """

    __slots__ = ("_dead", "_flags", "_under_way", "type")

    def __init__(self, factory_or_pid: Callable[[], Any] | int | None = None, pid: int | None = None) -> None:
        factory = factory_or_pid if callable(factory_or_pid) else None
        if factory is None and factory_or_pid is not None:
            if pid is not None:
                raise TypeError(
                    f"the first of two arguments makes the channel: a callable, not {type(factory_or_pid).__name__}"
                )
            pid = as_pid(factory_or_pid)
        process = current()
        where = process.pid if pid is None else as_pid(pid)
        if where != process.pid:
            member(process, where)
        self._set_up(process, where, process.new_rrid(), object, 0 if factory is not None else MAY_CREATE)
        process.references.created(self._rrid, where, self)
        if factory is not None:
            self._make(factory)
        elif where == process.pid:
            process.channels.backing(self._rrid, create=True)

    def _set_up(self, process: Process, where: int, rrid: RRID, kind: type, flags: int) -> None:
        self._process = process
        self.where = where
        self.type = kind
        self._rrid = rrid
        self._flags = flags
        """`MAY_CREATE` if the owner makes the channel when it is first used."""
        self._dead: str | None = None
        """Why the handle cannot be used any more."""
        self._under_way: set[tuple[Completion, Peer]] = set()
        """Requests that are not answered yet."""

    def _make(self, factory: Callable[[], Any]) -> None:
        process = self._process
        if self.where == process.pid:
            try:
                made = _make_channel(factory, self._rrid)
            except Exception as error:
                raise RemoteException(process.pid, capture(error)) from error
        else:
            self._peer()  # tells the owner of our claim first
            made = process.fetch_call(_make_channel, self.where, (factory, self._rrid), {})
        if isinstance(made, str):
            raise TypeError(made)
        self.type = made

    # ---- operations -------------------------------------------------------------------------------------------

    def put(self, *args: Any, timeout: float | None = None) -> RemoteChannel:
        """Add an item; waits while the channel is full. The handle itself.

        On the channel's own process the object itself is put, from elsewhere a snapshot of it.

        Args:
            *args: the item; what the backing store's ``put`` takes, if it is one of your own.
            timeout: seconds; None waits without limit.

        Raises:
            TimeoutError: no room within ``timeout``; the item is not in the channel. (A store of your own cannot be
                stopped, and may still put it.)
            InvalidStateException, RemoteException: the channel is closed; the store's ``put`` raised.
            TypeError: the item is not of the channel's type; nothing was sent.
            SerializeError: the item cannot be pickled; nothing was sent.
            ProcessExitedException: the process of the channel is gone.
        """
        process = self._process
        if self.where == process.pid:
            self._here("put", args, timeout)
            return self
        if len(args) != 1:
            body, buffers = process.encode(args, self.where)
            self._ask(ChannelOperation.PUT_SEVERAL, body, buffers, timeout)
            return self
        if self.type is not object:
            check_item(args[0], self.type)
        body, buffers, has_references = process.encode_item(args[0], self.where)
        self._ask(ChannelOperation.PUT_REFERENCES if has_references else _PUT, body, buffers, timeout)
        return self

    def take(self, *args: Any, timeout: float | None = None) -> Any:
        """Remove and return the oldest item; waits while there is none. Nobody else gets it.

        Args:
            *args: what the backing store's ``take`` takes, if it is one of your own.
            timeout: seconds; None waits without limit.

        Raises:
            TimeoutError: none within ``timeout``; no item is lost.
            InvalidStateException, RemoteException: the channel is closed and empty; the store's ``take`` raised.
            RemoteException: of `SerializeError`: the item cannot be pickled. It stays the oldest one of its channel.
            DeserializeError: the item cannot be rebuilt here; it is gone.
            ProcessExitedException: the process of the channel is gone.
        """
        # Plain calls, here and below: behind one with "*" a Ctrl-C may strike, and would take the item along.
        if self.where == self._process.pid:
            return self._here("take", args, timeout)
        body, buffers = self._arguments(args)
        return self._ask(_TAKE, body, buffers, timeout)

    def fetch(self, *args: Any, timeout: float | None = None) -> Any:
        """Return the oldest item and leave it; waits while there is none. The handle stays counted.

        Raises:
            As `take`; and InvalidStateException for an unbuffered channel, which has no place for an item to be seen.
        """
        if self.where == self._process.pid:
            return self._here("fetch", args, timeout)
        return self._ask(ChannelOperation.FETCH, *self._arguments(args), timeout)

    def wait(self, *args: Any, timeout: float | None = None) -> RemoteChannel:
        """Wait until there is an item; the handle itself. Somebody else may take it at once.

        Raises:
            As `take`.
        """
        if self.where == self._process.pid:
            self._here("wait", args, timeout)
        else:
            self._ask(ChannelOperation.WAIT, *self._arguments(args), timeout)
        return self

    def isready(self, *args: Any) -> bool:
        """Whether there is an item now (unbuffered: whether somebody waits to put one). It may be gone at once."""
        if self.where == self._process.pid:
            return bool(self._here("isready", args, None))
        return bool(self._ask(ChannelOperation.IS_READY, *self._arguments(args), None))

    def isempty(self) -> bool:
        """Whether there is no item now; takes none."""
        return bool(self._simply("isempty", ChannelOperation.IS_EMPTY))

    def isopen(self) -> bool:
        """Whether the channel is not closed."""
        return bool(self._simply("isopen", ChannelOperation.IS_OPEN))

    def close(self) -> None:
        """Close the channel: nothing more can be put, what is in it can still be taken, and who waits is told so."""
        self._simply("close", ChannelOperation.CLOSE)

    def __iter__(self) -> Iterator[Any]:
        """Take items until the channel is closed and empty."""
        while True:
            try:
                item = self.take()
            except (InvalidStateException, RemoteException) as error:
                why = error.captured.ex if isinstance(error, RemoteException) else error
                if isinstance(why, InvalidStateException) and not self.isopen():
                    return
                raise
            yield item

    def __getitem__(self, index: Any) -> Any:
        """``rr[()]`` is `fetch`; ``rr[i]`` and ``rr[i, j]`` index the oldest item on its process, and copy the element.

        Raises:
            RemoteException: there is no such element.
        """
        indices = index if type(index) is tuple else (index,)
        if not indices:
            return self.fetch()
        if self.where == self._process.pid:
            item = self._here("fetch", (), None)
            return item[index]
        body, buffers = self._process.encode(indices, self.where)
        return self._ask(ChannelOperation.INDEX, body, buffers, None)

    # ---- here -------------------------------------------------------------------------------------------------

    def _here(self, verb: str, args: tuple[Any, ...], timeout: float | None) -> Any:
        """An operation on a channel of this process."""
        self._check_alive()
        backing = self._process.channels.backing(self._rrid, create=bool(self._flags))
        if isinstance(backing, Channel):
            if verb == "take" and not args:
                return backing.take(timeout=timeout)  # a plain call: see `take`
            if verb in ("put", "take", "fetch", "wait"):
                return getattr(backing, verb)(*args, timeout=timeout)
            return getattr(backing, verb)(*args)
        return backing.call(verb, args) if timeout is None else backing.call_within(self._process, verb, args, timeout)

    # ---- elsewhere --------------------------------------------------------------------------------------------

    def _arguments(self, args: tuple[Any, ...]) -> tuple[Any, Any]:
        return self._process.encode(args, self.where) if args else (b"", ())

    def _simply(self, verb: str, operation: int) -> Any:
        if self.where == self._process.pid:
            return self._here(verb, (), None)
        return self._ask(operation, b"", (), None)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise InvalidStateException(self._dead)

    def _peer(self) -> Peer:
        """The connection to the owner, who has been told of all claims that this process makes."""
        self._check_alive()
        peer = self._process.peer(self.where)
        self._process.references.tell(self.where)
        return peer

    def _ask(self, operation: int, body: Any, buffers: Any, timeout: float | None) -> Any:
        """Have the owner do an operation, and wait for its answer."""
        deadline = NEVER if timeout is None else Deadline(timeout)
        process = self._process
        peer = self._peer()
        completion = Completion()
        entry = (completion, peer)
        self._under_way.add(entry)
        try:
            process.start_request(peer, operation | self._flags, self._rrid, body, buffers, completion)
            if not completion.done and not process.wait(completion, peer, deadline):
                process.cancel_call(peer, completion)
                if (
                    not process.wait(completion, peer, Deadline(_GRACE_SECONDS))
                    or completion.outcome == Outcome.CANCELLED
                ):
                    self._check_alive()
                    what = "item" if operation in _WANT_ITEM else "room"
                    raise TimeoutError(f"no {what} within {timeout} seconds in {self!r}")
            outcome = completion.outcome
            if outcome == Outcome.CLOSED:
                error = InvalidStateException(f"the channel is closed: {self!r}", state="closed")
                raise RemoteException(self.where, CapturedException(error, ""))
            if outcome == Outcome.CANCELLED:  # not by us
                self._check_alive()
            value = process.value_of(completion, peer)
            self._under_way.discard(entry)
            return value  # the last step: a Ctrl-C that strikes later would take the item along
        except BaseException as error:
            self._under_way.discard(entry)
            if not isinstance(error, HybridDistError):  # with those the operation has ended
                process.cancel_call(peer, completion)
                if operation == _TAKE:
                    completion.add_callback(partial(self._give_back, peer, body, buffers))
                elif not completion.done:
                    completion.add_callback(decline_value)
            raise

    def _give_back(self, peer: Peer, body: Any, buffers: Any, completion: Completion) -> None:
        """An item has come, or comes some time, that cannot be returned to anybody."""
        if completion.outcome == _VALUE:
            self._process.executor.submit(partial(self._give_back_now, peer, body, buffers, completion))

    def _give_back_now(self, peer: Peer, body: Any, buffers: Any, completion: Completion) -> None:
        process = self._process
        try:
            args = payload.loads(body, buffers) if body else ()
            item = process.value_of(completion, peer)
            process.start_request(
                peer, ChannelOperation.GIVE_BACK | self._flags, self._rrid, *process.encode((args, item), peer.pid)
            )
        except HybridDistError:
            pass  # the owner is gone, and the channel with it; or the item can be rebuilt nowhere

    # ---- the reference ----------------------------------------------------------------------------------------

    def _finalize(self) -> None:
        """Give the reference up now. Whoever waits with this handle is told so."""
        if self._dead is None:
            self._dead = f"{self!r} was finalized: it cannot be used any more"
            for completion, peer in list(self._under_way):
                self._process.cancel_call(peer, completion)
            self._process.references.released(self._rrid)

    def __repr__(self) -> str:
        kind = "" if self.type is object else f", type={self.type.__name__}"
        return f"RemoteChannel(where={self.where}, whence={self._rrid.whence}, id={self._rrid.id}{kind})"

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process of the cluster goes the reference; elsewhere a dead one."""
        process = self._process
        if self._dead is not None:
            return _revive_dead, (self.type, self._dead)
        if process.references.met(self._rrid, self.where):
            return _revive, (self.where, *self._rrid, process.pid, self.type, self._flags)
        return _revive_dead, (self.type, None)


def _make_channel(factory: Callable[[], Any], rrid: RRID) -> type | str:
    """Runs on the process of the channel: make it. Its items' type, or why it is no channel."""
    process = this_process()
    made = factory()
    if isinstance(made, type):
        return f"the factory of a RemoteChannel has to return a channel, and returned the class {made.__name__}"
    missing = [name for name in _NEEDED if not callable(getattr(made, name, None))]
    if missing:
        return (
            "the factory of a RemoteChannel has to return a channel; what it returned is of type "
            f"{type(made).__name__} and lacks {', '.join(missing)}"
        )
    process.store.made(rrid, made if type(made) is Channel else Keeper(made))
    return made.type if isinstance(made, Channel) else object


def new_handle(process: Process, where: int, rrid: RRID, kind: type, flags: int) -> RemoteChannel:
    handle = RemoteChannel.__new__(RemoteChannel)
    handle._set_up(process, where, rrid, kind, flags)
    return handle


def _revive(where: int, whence: int, id_: int, giver: int, kind: type, flags: int) -> RemoteChannel:
    """A reference has arrived: its canonical handle."""
    process, rrid = current(), RRID(whence, id_)
    return process.references.arrived(rrid, where, giver, lambda: new_handle(process, where, rrid, kind, flags))


_claim: Final = claim  # belongs to `_revive`: see `core/payload.py`


def _revive_dead(kind: type, why: str | None) -> RemoteChannel:
    """A reference that went through something that is no cluster: nobody counts it, and there is no channel."""
    handle = new_handle(current(), 0, DEAD, kind, 0)
    handle._dead = why or (
        "this RemoteChannel was pickled outside of the cluster (to a file or by another library): the reference is dead"
    )
    return handle
