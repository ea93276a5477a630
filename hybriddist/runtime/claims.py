"""References between this process and the others: the link between handles, pickles and the books.

A handle (`Future`) that is pickled for another process gives that process a claim, told to the owner on the same path
and before the message leaves. A handle that is pickled for anything else (a file, another library's queue) becomes a
dead one. To tell the two apart costs nothing while no reference is pickled: `payload.dumps` runs as usual, and a handle
that finds nobody sending only counts itself in `pickled` and leaves a dead handle; the sender sees the counter and
pickles once more, with its name on the door.

What this module does not know: the counting itself (``core/references.py``), and what a handle looks like.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from hybriddist.core import payload
from hybriddist.core.messages import Claims
from hybriddist.core.references import HolderBook
from hybriddist.errors import TransportError
from hybriddist.ids import RRID

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

H = TypeVar("H")


class _Sending(threading.local):
    """What this thread is sending: the references it has met, or None when it sends nothing."""

    met: list[tuple[RRID, int]] | None = None


class References:
    """The references that one process holds and hands on."""

    def __init__(self, process: Process) -> None:
        self.pickled = 0
        """Handles that were pickled while their thread was not known to send; only ever compared."""
        self._process = process
        self._book: HolderBook[Any] = HolderBook(process.pid, notify=process.poller.wake)
        self._lock = threading.RLock()
        self._sending = _Sending()

    def become(self, pid: int) -> None:
        """A worker has been told its pid."""
        self._book.pid = pid

    # ---- handles ----------------------------------------------------------------------------------------------

    def created(self, rrid: RRID, owner: int, handle: Any, *, announced: bool) -> None:
        """A handle to a new reference was made here; see `HolderBook.created`."""
        with self._lock:
            self._book.created(rrid, owner, handle, announced=announced)
            if not announced:
                self._tell(owner)

    def arrived(self, rrid: RRID, owner: int, giver: int, make: Callable[[], H]) -> H:
        """A reference arrived in a message; its canonical handle."""
        with self._lock:
            handle: H = self._book.arrived(rrid, owner, giver, make)
        return handle

    def released(self, rrid: RRID) -> None:
        """The handle needs its reference no more: the owner may free the value."""
        with self._lock:
            self._book.released(rrid)
        self.flush()

    def drop_process(self, pid: int) -> None:
        """A process is gone, and what it owned with it."""
        with self._lock:
            self._book.drop_owner(pid)

    # ---- pickles ----------------------------------------------------------------------------------------------

    def met(self, rrid: RRID, owner: int) -> bool:
        """Called by a handle that is being pickled; False if it does not go to a process of the cluster."""
        met = self._sending.met
        if met is None:
            self.pickled += 1
            return False
        met.append((rrid, owner))
        return True

    def encode(self, value: Any, pid: int) -> tuple[bytes, Any]:
        """Pickle a value that has references in it for process ``pid``, and give it its claims."""
        met: list[tuple[RRID, int]] = []
        self._sending.met = met
        try:
            encoded = payload.dumps(value)
        finally:
            self._sending.met = None
        with self._lock:
            for rrid, owner in met:
                self._book.given(rrid, owner, pid)
            for owner in {owner for _, owner in met}:
                self._tell(owner)
        return encoded

    # ---- telling ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Tell every owner what it is to be told. Never blocks."""
        if self._book.has_changes():
            with self._lock:
                for owner in self._book.owners():
                    self._tell(owner)

    def _tell(self, owner: int) -> None:
        changes = self._book.take_changes(owner)
        if not changes:
            return
        if owner == self._process.pid:
            self._process.store.change(changes)
            return
        peer = self._process.peers.get(owner)
        if peer is None:
            return  # its connection is gone, and its claims with it
        try:
            peer.post(Claims(changes))
        except TransportError:
            pass  # likewise


__all__ = ["References"]
