"""`Future`: a placeholder for one value that some process computes or will be given.

The value lives on the process ``where``. A future is written once; whoever has fetched it keeps the value (or the
error) and needs the other process no more. Handles are counted across the cluster: when the last one is gone or has
fetched, the value is freed.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from hybriddist.awaiting import check_callback, until_ended, when_done
from hybriddist.core.messages import Mode, Operation, Outcome
from hybriddist.deadline import Deadline
from hybriddist.errors import HybridDistError, InvalidStateException, ProcessExitedException, RemoteException
from hybriddist.ids import RRID, as_pid
from hybriddist.reference import DEAD, Reference
from hybriddist.runtime.asking import LOST
from hybriddist.runtime.cancelling import cancel_reference
from hybriddist.runtime.claims import claim as _claim  # noqa: F401 - belongs to `_revive`: see `core/payload.py`
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process
from hybriddist.runtime.store import cannot_be_set

_Source = tuple[Completion, Peer | None]
"""What ends when the value is there, and the peer that tells; None: it is an entry of our own store."""


class Future(Reference):
    """A write-once reference to a value on some process.

    Args:
        pid: the process that is to hold the value; this process by default.

    Example::

        f = hd.remotecall(pow, 2, 7, 2)     # worker 2 computes 7 ** 2
        f.fetch()                           # 49

    Source: Julia's Distributed, ``Future``.
    """

    __slots__ = ("_asking", "_lock", "_outcome", "_release_due", "_request", "_value", "_waiting")

    def __init__(self, pid: int | None = None) -> None:
        process = current()
        where = process.pid if pid is None else as_pid(pid)
        if where != process.pid:
            member(process, where)
        self._set_up(process, where, process.new_rrid())
        process.references.created(self._rrid, where, self)

    def _set_up(self, process: Process, where: int, rrid: RRID) -> None:
        self._process = process
        self.where = where
        self._rrid = rrid
        self._lock = threading.Lock()
        """Held while the end is kept, so that of several waiting threads one unpickles it and all get the same."""
        self._request: _Source | None = None
        """The one request that fetches the value, once somebody wants it."""
        self._waiting: _Source | None = None
        """The one request that waits for the end without fetching the value."""
        self._asking = 0
        """How many other requests are under way: until they are answered the holder must not forget the reference."""
        self._release_due = False
        self._outcome: int | None = None
        """None until the end is known here; then `Outcome`, or LOST with the exception to raise."""
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
            concurrent.futures.CancelledError: somebody has cancelled it.
            ProcessExitedException: the process that held the value is gone.
            DeserializeError: the value cannot be unpickled here.
            InvalidStateException: the reference was finalized.
        """
        if self._outcome is None or timeout is not None:
            self._learn(timeout)
        return self._result()

    result = fetch

    def wait(self, timeout: float | None = None) -> Future:
        """Wait until there is a value; the future itself. The value is not fetched.

        Raises:
            TimeoutError, RemoteException, ProcessExitedException, InvalidStateException: as `fetch`.
        """
        if self._outcome is None or timeout is not None:
            if self._request is not None or self._outcome is not None or self.where == self._process.pid:
                self._learn(timeout)
            else:
                source = self._begin_to("_waiting", Operation.WAIT)
                if source is not None:
                    self._wait_for(source, timeout)
                    if source[0].outcome == Outcome.VALUE:
                        return self
                    self._finish(source)
        if self._outcome != Outcome.VALUE:
            self._result()
        return self

    def isready(self) -> bool:
        """Whether there is a value (or an error) by now. Asks the holder, unless this process knows already.

        Raises:
            ProcessExitedException: the holder is gone.
            InvalidStateException: the reference was finalized.
        """
        if self._outcome is not None:
            if self._uselessness():
                self._result()
            return True
        process = self._process
        if self.where == process.pid:
            return process.store.entry(self._rrid).done
        if any(source is not None and source[0].done for source in (self._request, self._waiting)):
            return True
        with self._claimed() as unknown:
            return not unknown or bool(self._ask(Operation.IS_READY))

    def put(self, value: Any) -> Future:
        """Give the future its value; the future itself.

        Raises:
            InvalidStateException: it has one already.
            SerializeError: the value cannot be pickled; the future stays without.
            ProcessExitedException: the process that was to hold the value is gone.
        """
        process = self._process
        with self._claimed() as unknown:
            if self._outcome == LOST:
                self._result()
            if not unknown:
                raise InvalidStateException(cannot_be_set(self, self._outcome), state="set")
            if self.where == process.pid:
                process.store.put(self._rrid, value)
                return self
            try:
                self._ask(Operation.PUT, (value,))
            except RemoteException as error:
                if isinstance(error.captured.ex, InvalidStateException):
                    raise error.captured.ex from None
                raise
            self._adopt(Outcome.VALUE, value)
        return self

    def __getitem__(self, index: Any) -> Any:
        """An element of the value, which is fetched whole; ``f[()]`` is the value."""
        value = self.fetch()
        return value if type(index) is tuple and not index else value[index]

    def cancel(self) -> bool:
        """End the future without a value, for everybody who has it; whether it is cancelled now.

        Its call is dropped if it has not begun, and interrupted if it runs: a `KeyboardInterrupt` is raised in it (on a
        worker's main thread also in the middle of a `time.sleep`, on others at the next bytecode). Waits for the
        holder's answer, not for the call's end. Fetching then raises `concurrent.futures.CancelledError`.

        Returns:
            False if there is a value or an error already, or the holder is gone.
        """
        with self._claimed() as unknown:
            if unknown:
                process = self._process
                try:
                    is_own = self.where == process.pid
                    done = cancel_reference(process, self._rrid) if is_own else self._ask(Operation.CANCEL)
                except ProcessExitedException:
                    done = False
                if done:
                    self._adopt(Outcome.CANCELLED, None)
        return self._outcome == Outcome.CANCELLED

    # ---- callbacks --------------------------------------------------------------------------------------------

    def add_done_callback(self, function: Callable[[Future], Any]) -> None:
        """Call ``function(self)`` when the end is known, on a thread of the library; at once if it is known now.

        The value is fetched for that. What the function raises is shown on stderr.

        Raises:
            TypeError: it cannot be called.
        """
        check_callback(function)
        self._when_done(function)

    def _when_done(self, function: Callable[[Future], Any]) -> Callable[[], None]:
        return when_done(self, function)

    def __await__(self) -> Generator[Any, None, Any]:
        """``await future``: its value, without blocking the event loop."""
        if self._outcome is None:
            yield from until_ended(self)
        return self._result()

    # ---- inside -----------------------------------------------------------------------------------------------

    def _peer(self) -> Peer:
        """The connection to the holder, who has been told of all claims that this process makes."""
        peer = self._process.peer(self.where)
        self._process.references.tell(self.where)
        return peer

    @contextmanager
    def _claimed(self) -> Iterator[bool]:
        """Keep the claim for the time of a request, whoever learns the end meanwhile; False: the end is known.

        A request that comes after its claim is gone would make the reference anew, and nobody would ever release that.
        """
        with self._lock:
            unknown = self._outcome is None
            self._asking += unknown
        try:
            yield unknown
        finally:
            if unknown:
                with self._lock:
                    self._asking -= 1
                    due = self._release_due and not self._asking
                    self._release_due &= not due
                if due:
                    self._process.references.released(self._rrid)

    def _ask(self, operation: Operation, content: tuple[Any, ...] | None = None) -> Any:
        process, peer = self._process, self._peer()
        pickled = () if content is None else process.encode(content, peer.pid)
        completion = process.start_request(peer, operation, self._rrid, *pickled)
        process.wait(completion, peer)
        return process.value_of(completion, peer)

    def _begin(self) -> _Source | None:
        """See that the end is under way to us; None if it is known already."""
        return self._begin_to("_request", Operation.FETCH)

    def _begin_to(self, slot: str, operation: Operation) -> _Source | None:
        with self._lock:
            if self._outcome is not None:
                return None
            source: _Source | None = getattr(self, slot)
            if source is None:
                process = self._process
                try:
                    if self.where == process.pid:
                        source = process.store.entry(self._rrid), None
                    else:
                        peer = self._peer()
                        source = process.start_request(peer, operation, self._rrid), peer
                except ProcessExitedException as error:  # it will not come back: this is the end
                    self._remember(LOST, error)
                    return None
                setattr(self, slot, source)
            return source

    def _wait_for(self, source: _Source, timeout: float | None) -> None:
        completion, peer = source
        if not completion.done and not self._process.wait(completion, peer, Deadline(timeout)):
            raise TimeoutError(f"no value within {timeout} seconds for {self!r}")

    def _learn(self, timeout: float | None) -> None:
        """Wait for the end and keep it here."""
        Deadline(timeout)  # raises if it is no number, also where there is nothing to wait for
        source = self._begin()
        if source is not None:
            self._wait_for(source, timeout)
            self._finish(source)

    def _finish(self, source: _Source) -> None:
        """Keep an end that has come."""
        completion, peer = source
        with self._lock:
            if self._outcome is not None:
                return
            if peer is None:
                self._remember(completion.outcome, completion.content, release=False)
            elif completion.outcome == Outcome.CANCELLED:
                self._remember(Outcome.CANCELLED, None)
            else:
                try:
                    self._remember(Outcome.VALUE, self._process.value_of(completion, peer))
                except RemoteException as error:
                    self._remember(Outcome.ERROR, error.captured)
                except HybridDistError as error:  # the process is gone, or the value cannot be unpickled here
                    self._remember(LOST, error)

    def _remember(self, outcome: int, value: Any, *, release: bool = True) -> None:
        """The caller holds the lock."""
        self._value = value
        self._outcome = outcome  # last: who sees it may read the value without the lock
        self._request = self._waiting = None
        if self._asking:
            self._release_due |= release
        elif release:
            self._process.references.released(self._rrid)

    def _result(self) -> Any:
        if self._outcome == Outcome.VALUE:
            return self._value
        if self._outcome == Outcome.ERROR:
            raise RemoteException(self.where, self._value)
        if self._outcome == Outcome.CANCELLED:
            from concurrent.futures import CancelledError  # 3 ms, and rarely needed

            raise CancelledError(f"{self!r} was cancelled")
        # A new one for each: raising adds to an exception's traceback, and several threads may do so.
        error: BaseException = self._value
        raise copy.copy(error) from error.__cause__

    def _finalize(self) -> None:
        """Give the reference up now. Whoever waits on this handle is told so."""
        with self._lock:
            sources = [source for source in (self._request, self._waiting) if source is not None]
            self._remember(LOST, InvalidStateException(f"{self!r} was finalized: it is of no use", state="released"))
        for completion, peer in sources:
            if peer is not None and self._process.abandon(peer, completion, self._value):
                # Who waits may be asleep on the connection itself, and wakes when something comes.
                self._process.start_call(bool, peer, (), {}, Mode.FETCH, 0, 0)

    def _adopt(self, outcome: int, value: Any) -> None:
        """The end has come with another copy of the reference."""
        with self._lock:
            if self._outcome is None:
                self._remember(outcome, value)

    # ---- identity ---------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "" if self._outcome is None else ", cancelled" if self._outcome == Outcome.CANCELLED else ", fetched"
        state = self._uselessness() or state
        return f"Future(where={self.where}, whence={self._rrid.whence}, id={self._rrid.id}{state})"

    def _uselessness(self) -> str:
        if self._outcome == LOST and isinstance(self._value, InvalidStateException):
            return ", finalized" if self._value.state == "released" else ", dead"
        return ""

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process of the cluster goes the reference, with its value if it is known; elsewhere a dead one."""
        if self._outcome is not None:
            return _revive_with_end, (self.where, self._rrid, self._outcome, self._value)
        if self._process.references.met(self._rrid, self.where):
            # Plain numbers: the pickle of an RRID is made by Python code.
            return _revive, (self.where, *self._rrid, self._process.pid)
        return _revive_dead, ()


def _new(process: Process, where: int, rrid: RRID) -> Future:
    future = Future.__new__(Future)
    future._set_up(process, where, rrid)
    return future


def _revive(where: int, whence: int, id_: int, giver: int) -> Future:
    """A reference has arrived: its canonical handle."""
    process, rrid = current(), RRID(whence, id_)
    return process.references.arrived(rrid, where, giver, lambda: _new(process, where, rrid))


def _revive_with_end(where: int, rrid: RRID, outcome: int, value: Any) -> Future:
    """A reference whose end travelled with it; it claims nothing. A handle that is here already learns the end."""
    process = current()
    known: Future | None = process.references.handle(rrid)
    if known is not None:
        if where != process.pid:  # our own store has the value itself, and this is a copy
            known._adopt(outcome, value)
        return known
    future = _new(process, where, rrid)
    future._outcome, future._value = outcome, value
    return future


def _revive_dead() -> Future:
    """A reference that went through something that is no cluster: nobody counts it, and it has no value."""
    text = "this Future was pickled outside of the cluster (to a file or by another library): the reference is dead"
    return _revive_with_end(0, DEAD, LOST, InvalidStateException(text))
