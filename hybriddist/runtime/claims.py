"""References between this process and the others: the link between handles, pickles and the books.

A handle (`Future`) that is pickled for another process gives that process a claim, told to the owner on the same path
and before the message leaves. A handle that is pickled for anything else (a file, another library's queue) becomes a
dead one. To tell the two apart costs nothing while no reference is pickled: `payload.dumps` runs as usual, and a handle
that finds nobody sending only counts itself in `pickled` and leaves a dead handle; the sender sees the counter and
pickles once more, with its name on the door. Where references were in the last message the next sender expects some,
and puts its name there at once.

An owner that this process has no connection to is told all the same: adds have to be heard before the message leaves,
so the sender connects first; releases may wait, so a thread of its own does. Where the topology allows no connection,
the driver passes the changes on::

    holder ── connection to the owner? ──yes──► Claims
                   │ no
                   ├─ may connect: connect, then Claims
                   └─ may not: call relay_claims on the driver ──► call apply_claims on the owner

What this module does not know: the counting itself (``core/references.py``), and what a handle looks like.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hybriddist.core import payload
from hybriddist.core.messages import Claims, new
from hybriddist.core.references import Change, HolderBook
from hybriddist.errors import (
    HybridDistError,
    NoSuchProcessError,
    ProcessExitedException,
    TransportError,
)
from hybriddist.ids import DRIVER, RRID
from hybriddist.runtime.context import this_process

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

H = TypeVar("H")


class _Sending(threading.local):
    """What this thread is sending: the references it has met, or None when it sends nothing."""

    met: list[tuple[RRID, int]] | None = None


class References:
    """The references that one process holds and hands on.

    Attributes:
        pickled: handles that were pickled while their thread was not known to send; only ever compared.
        expected: whether a sender is to pickle with its name on the door at once: a thread does so now (if it is this
            one, `pickled` does not tell), or the last message that was so pickled had references in it.
    """

    def __init__(self, process: Process) -> None:
        self.pickled = 0
        self.expected = False
        self._encoding = 0
        self._process = process
        self._book: HolderBook[Any] = HolderBook(process.pid, notify=process.poller.wake)
        self._lock = threading.RLock()
        self._sending = _Sending()
        self._relaying = threading.Lock()
        self._reaching: set[int] = set()
        """Owners that a thread is about to connect to."""

    def become(self, pid: int) -> None:
        """A worker has been told its pid."""
        self._book.pid = pid

    # ---- handles ----------------------------------------------------------------------------------------------

    def created(self, rrid: RRID, owner: int, handle: Any, *, announced: bool) -> None:
        """A handle to a new reference was made here; see `HolderBook.created`. The owner is told on first use."""
        with self._lock:
            self._book.created(rrid, owner, handle, announced=announced)

    def never_told(self, rrid: RRID) -> None:
        """The call that was to announce a new reference was not sent."""
        with self._lock:
            self._book.never_told(rrid)

    def arrived(self, rrid: RRID, owner: int, giver: int, make: Callable[[], H]) -> H:
        """A reference arrived in a message; its canonical handle."""
        with self._lock:
            handle: H = self._book.arrived(rrid, owner, giver, make)
        return handle

    def handle(self, rrid: RRID) -> Any:
        """The canonical handle of a reference; None if none lives here."""
        with self._lock:
            return self._book.handle(rrid)

    def released(self, rrid: RRID) -> None:
        """The handle needs its reference no more: the owner may free the value."""
        with self._lock:
            self._book.released(rrid)
        self.flush()

    def drop_process(self, pid: int) -> None:
        """A process is gone, and what it owned with it."""
        with self._lock:
            self._book.drop_owner(pid)

    def __len__(self) -> int:
        """How many references have a handle here."""
        return len(self._book)

    # ---- pickles ----------------------------------------------------------------------------------------------

    def met(self, rrid: RRID, owner: int) -> bool:
        """Called by a handle that is being pickled; False if it does not go to a process of the cluster."""
        met = self._sending.met
        if met is None:
            self.pickled += 1
            return False
        met.append((rrid, owner))
        return True

    def encode(self, value: Any, pid: int, labels: Sequence[str] = ()) -> tuple[bytes, Any, bool]:
        """Pickle a value that may have references in it for process ``pid``, and give it its claims.

        Returned last is whether there were any. Blocks where it has to connect to the owner of one.
        """
        body, buffers, met = self._encode(value, labels)
        if not met:
            return body, buffers, False
        with self._lock:
            for rrid, owner in met:
                self._book.given(rrid, owner, pid)
            peers = self._process.peers
            unreached = []
            for owner in {owner for _, owner in met}:
                peer = peers.get(owner)
                if peer is None or peer.lost is not None or not self._tell(owner):
                    unreached.append(owner)
        for owner in unreached:
            self._reach(owner)
        return body, buffers, True

    def encode_for_all(self, value: Any, labels: Sequence[str] = ()) -> tuple[bytes, Any] | None:
        """Pickle a value for any number of processes. None if there are references in it: each process needs claims."""
        body, buffers, met = self._encode(value, labels)
        return None if met else (body, buffers)

    def _encode(self, value: Any, labels: Sequence[str]) -> tuple[bytes, Any, list[tuple[RRID, int]]]:
        outer = self._sending.met  # what is being pickled may call: a __reduce__ that fetches something
        met: list[tuple[RRID, int]] = []
        self._sending.met = met
        with self._lock:
            self._encoding += 1
            self.expected = True
        try:
            body, buffers = payload.dumps(value, labels)
        finally:
            self._sending.met = outer
            with self._lock:
                self._encoding -= 1
                self.expected = bool(met or self._encoding)
        return body, buffers, met

    # ---- telling ----------------------------------------------------------------------------------------------

    def tell(self, owner: int) -> None:
        """Tell ``owner``, to whom there is a connection, what it is to be told: before a request to it."""
        if self._book.has_changes():
            with self._lock:
                self._tell(owner)

    def flush(self) -> None:
        """Tell every owner what it is to be told. Never blocks: what needs a connection first is left to a thread."""
        if not self._book.has_changes():
            return
        with self._lock:
            for owner in self._book.owners():
                if not self._tell(owner) and owner not in self._reaching:
                    self._reaching.add(owner)
                    self._process.spawn(lambda owner=owner: self._reach(owner), "hybriddist-claims")  # type: ignore[misc]

    def _tell(self, owner: int) -> bool:
        """Tell an owner, unless there is no connection to it. The caller holds the lock."""
        process = self._process
        if owner == process.pid:
            process.store.change(self._book.take_changes(owner))
            return True
        peer = process.peers.get(owner)
        if peer is None:
            if process.membership.why_gone(owner) is None and not process.leaving.is_set():
                return False  # also if nobody has told us of it yet: a reference may come first
            self._book.take_changes(owner)  # it is gone, and what it owned with it
            return True
        if peer.lost is not None:
            return True  # soon it is known whether only the connection is gone
        changes = self._book.take_changes(owner)
        if changes:
            try:
                peer.post(new(Claims, (changes,)))
            except TransportError:
                pass  # likewise
        return True

    def _reach(self, owner: int) -> None:
        """Tell an owner, by whatever path there is."""
        process = self._process
        try:
            if owner != process.pid:
                process.peer(owner)
        except ProcessExitedException:
            pass  # nobody is left to be told: `_tell` sees to it
        except NoSuchProcessError:
            with self._lock:
                self._book.take_changes(owner)
        except HybridDistError:
            self._relay(owner)
        finally:
            self._reaching.discard(owner)
        with self._lock:
            self._tell(owner)

    def _relay(self, owner: int) -> None:
        """Tell an owner through the driver, and return when it has heard: so one change cannot overtake another."""
        with self._relaying:
            with self._lock:
                changes = self._book.take_changes(owner)
            if changes:
                try:
                    self._process.fetch_call(relay_claims, DRIVER, (owner, changes), {})
                except HybridDistError:
                    pass  # the owner is gone, or the driver and with it everything


def relay_claims(owner: int, changes: Sequence[Change]) -> None:
    """Runs on the driver: tell a process what another one, which has no connection to it, has to tell."""
    this_process().fetch_call(apply_claims, owner, (changes,), {})


def apply_claims(changes: Sequence[Change]) -> None:
    """Runs on the owner."""
    this_process().store.change(changes)


__all__ = ["References"]
