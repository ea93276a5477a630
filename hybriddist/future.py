"""`Future`: a placeholder for one value that some process computes or will be given.

The value lives on the process ``where``. A future is written once; whoever has fetched it keeps the value (or the
error) and needs the other process no more. Handles are counted across the cluster: when the last one is gone or has
fetched, the value is freed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

from hybriddist.core import captured
from hybriddist.core.messages import Operation, Outcome
from hybriddist.deadline import Deadline
from hybriddist.errors import HybridDistError, InvalidStateException, RemoteException
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process


class Future:
    """A write-once reference to a value on some process.

    Args:
        pid: the process that is to hold the value; this process by default.

    Example::

        f = hd.remotecall(pow, 2, 7, 2)     # worker 2 computes 7 ** 2
        f.fetch()                           # 49

    Source: Julia's Distributed, ``Future``.
    """

    __slots__ = ("__weakref__", "_lock", "_outcome", "_process", "_request", "_rrid", "_value", "where")

    def __init__(self, pid: int | None = None) -> None:
        process = current()
        where = process.pid if pid is None else pid
        if where != process.pid:
            process.membership.require(where)
        self._set_up(process, where, process.new_rrid())
        if where == process.pid:
            process.store.created(self._rrid)
        process.references.created(self._rrid, where, self, announced=where == process.pid)

    def _set_up(self, process: Process, where: int, rrid: RRID) -> None:
        self._process = process
        self.where = where
        self._rrid = rrid
        self._lock = threading.Lock()
        self._request: tuple[Completion, Peer] | None = None
        self._outcome: int | None = None
        """None until the end is known here; then `Outcome`, or -1 for a process that is gone."""
        self._value: Any = None

    @classmethod
    def _of_call(cls, process: Process, where: int) -> Future:
        """The future of a call that is about to be sent; the call itself announces the first claim."""
        future = cls.__new__(cls)
        future._set_up(process, where, process.new_rrid())
        return future

    # ---- reading ----------------------------------------------------------------------------------------------

    def fetch(self, timeout: float | None = None) -> Any:
        """The value; waits until there is one.

        Args:
            timeout: seconds; None waits without limit.

        Raises:
            TimeoutError: not within ``timeout``; nothing is lost, fetch again.
            RemoteException: the call failed; the original exception is its ``__cause__``.
            ProcessExitedException: the process that held the value is gone.
        """
        if self._outcome is None:
            self._learn(Deadline(timeout))
        return self._result()

    result = fetch

    def wait(self, timeout: float | None = None) -> Future:
        """Wait until there is a value; the future itself.

        Raises:
            TimeoutError, RemoteException, ProcessExitedException: as `fetch`.
        """
        if self._outcome is not None:
            self._result()
            return self
        deadline = Deadline(timeout)
        process = self._process
        if self.where == process.pid or self._request is not None:
            self._learn(deadline)
            self._result()
            return self
        peer = self._peer()
        completion = process.start_request(peer, Operation.WAIT, self._rrid)
        if not process.wait(completion, peer, deadline):
            raise TimeoutError(f"no value within {timeout} seconds for {self!r}")
        if completion.outcome != Outcome.VALUE:
            self._finish(completion, peer)
            self._result()
        return self

    def isready(self) -> bool:
        """Whether there is a value (or an error) by now. Asks the holder, unless this process knows already."""
        if self._outcome is not None:
            return True
        process = self._process
        if self.where == process.pid:
            return process.store.entry(self._rrid).done
        if self._request is not None:
            return self._request[0].done
        peer = self._peer()
        completion = process.start_request(peer, Operation.IS_READY, self._rrid)
        process.wait(completion, peer)
        return bool(process.value_of(completion, peer))

    def put(self, value: Any) -> Future:
        """Give the future its value; the future itself.

        Raises:
            InvalidStateException: it has one already.
        """
        process = self._process
        if self._outcome is not None:
            raise InvalidStateException(f"Future can be set only once: {self!r} already has its value")
        if self.where == process.pid:
            process.store.put(self._rrid, value)
            return self
        peer = self._peer()
        completion = process.start_request(peer, Operation.PUT, self._rrid, (value,))
        process.wait(completion, peer)
        try:
            process.value_of(completion, peer)
        except RemoteException as error:
            if isinstance(error.captured.ex, InvalidStateException):
                raise error.captured.ex from None
            raise
        self._remember(Outcome.VALUE, value)
        return self

    def __getitem__(self, index: Any) -> Any:
        """An element of the value, which is fetched whole; ``f[()]`` is the value."""
        value = self.fetch()
        return value if index == () else value[index]

    # ---- callbacks --------------------------------------------------------------------------------------------

    def add_done_callback(self, function: Callable[[Future], Any]) -> None:
        """Call ``function(self)`` when the end is known, on a thread of the library; at once if it is known now.

        The value is fetched for that. What the function raises is shown on stderr.
        """
        if self._outcome is not None:
            function(self)
            return
        process = self._process

        def run() -> None:
            try:
                self._learn(Deadline(None))
                function(self)
            except Exception:
                import traceback

                traceback.print_exc()

        def ended(_: Completion) -> None:
            process.start()
            process.executor.submit(run)

        self._source().add_callback(ended)

    def __await__(self) -> Generator[Any, None, Any]:
        """``await future``: its value, without blocking the event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def wake(_: Future) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell)

        self.add_done_callback(wake)
        yield from ended
        return self.fetch()

    # ---- inside -----------------------------------------------------------------------------------------------

    def _peer(self) -> Peer:
        return self._process.peer(self.where)

    def _source(self) -> Completion:
        """What ends when the value is there: our own store's entry, or the one request that fetches it."""
        process = self._process
        if self.where == process.pid:
            return process.store.entry(self._rrid)
        with self._lock:
            if self._request is None:
                peer = self._peer()
                self._request = (process.start_request(peer, Operation.FETCH, self._rrid), peer)
            return self._request[0]

    def _learn(self, deadline: Deadline) -> None:
        """Wait for the end and keep it here."""
        process = self._process
        source = self._source()
        request = self._request
        peer = request[1] if request is not None else None
        if not source.done and not process.wait(source, peer, deadline):
            raise TimeoutError(f"no value in time for {self!r}")
        self._finish(source, peer)

    def _finish(self, source: Completion, peer: Peer | None) -> None:
        if self._outcome is not None:
            return
        process = self._process
        if peer is None:
            self._remember(source.outcome, source.content, release=False)
            return
        try:
            self._remember(Outcome.VALUE, process.value_of(source, peer))
        except RemoteException as error:
            self._remember(Outcome.ERROR, error.captured)
        except HybridDistError as error:  # the process is gone, or the value cannot be unpickled here
            self._remember(-1, error)

    def _remember(self, outcome: int, value: Any, *, release: bool = True) -> None:
        self._value = value
        self._outcome = outcome
        self._request = None
        if release:
            self._process.references.released(self._rrid)

    def _result(self) -> Any:
        if self._outcome == Outcome.VALUE:
            return self._value
        if self._outcome == Outcome.ERROR:
            raise RemoteException(self.where, self._value)
        raise self._value

    # ---- identity ---------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Future) and other._rrid == self._rrid

    def __hash__(self) -> int:
        return hash(self._rrid)

    def __repr__(self) -> str:
        state = "" if self._outcome is None else ", fetched"
        return f"Future(where={self.where}, whence={self._rrid.whence}, id={self._rrid.id}{state})"

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process of the cluster goes the reference, with its value if it is known; elsewhere a dead one."""
        if self._outcome == Outcome.VALUE:
            return (_revive_with_value, (self.where, self._rrid, self._outcome, self._value))
        if self._outcome == Outcome.ERROR:
            return (_revive_with_value, (self.where, self._rrid, self._outcome, captured.dump(self._value)))
        if self._process.references.met(self._rrid, self.where):
            return (_revive, (self.where, self._rrid, self._process.pid))
        return (_revive_dead, ())


def _new(process: Process, where: int, rrid: RRID) -> Future:
    future = Future.__new__(Future)
    future._set_up(process, where, rrid)
    return future


def _revive(where: int, rrid: RRID, giver: int) -> Future:
    """A reference has arrived: its canonical handle."""
    process = current()
    return process.references.arrived(rrid, where, giver, lambda: _new(process, where, rrid))


def _revive_with_value(where: int, rrid: RRID, outcome: int, value: Any) -> Future:
    """A reference whose value travelled with it; it claims nothing."""
    future = _new(current(), where, rrid)
    future._outcome = outcome
    future._value = captured.load(*value) if outcome == Outcome.ERROR else value
    return future


def _revive_dead() -> Future:
    """A reference that went through something that is no cluster: nobody counts it, and it has no value."""
    future = _new(current(), 0, RRID(0, 0))
    future._outcome = -1
    future._value = InvalidStateException(
        "this Future was pickled outside of the cluster (to a file or by another library): the reference is dead"
    )
    return future
