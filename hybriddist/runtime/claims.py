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

What cannot be unpickled at the receiver has its claims all the same: those whose handles it did not come to are given
up (`Claim.decline`, called by ``core/payload.py``).

What this module does not know: the counting itself (``core/references.py``), and what a handle looks like.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hybriddist.core import captured, payload
from hybriddist.core.messages import Claims, new
from hybriddist.core.references import Change, HolderBook, edge
from hybriddist.errors import (
    HybridDistError,
    NoSuchProcessError,
    ProcessExitedException,
    TransportError,
)
from hybriddist.ids import DRIVER, RRID
from hybriddist.records import Record
from hybriddist.runtime.context import known, this_process

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

H = TypeVar("H")

IN_THE_MARGIN: Final = -1
"""In the place of an owner: the creator, which counts bare references to its blocks (``blocks.py``) by itself."""

_Dump = Callable[[Any, Sequence[str], Callable[[], object]], tuple[bytes, Any]]
"""As `payload.dumps`."""


class Claim(Record):
    """A claim that came, or goes, with a value."""

    rrid: RRID
    owner: int
    giver: int
    is_first: bool = False
    """By it the receiver is told of a block, of which it will get bare references from now on."""

    def decline(self) -> None:
        """No handle will be made for it here."""
        process = known()
        if process is not None:
            process.references.declined(self)


def claim(where: int, whence: int, id_: int, giver: int, *_: Any) -> list[Claim]:
    """What is claimed by the pickle of a Future or a RemoteChannel, from what these pass to their ``_revive``."""
    return [Claim(RRID(whence, id_), where, giver)]


class _Sending(threading.local):
    """What this thread is sending: the references it has met, or None when it sends nothing."""

    met: list[tuple[RRID, int]] | None = None
    receiver: int = 0
    """The process it is sent to; 0 if there may be several."""


class References:
    """The references that one process holds and hands on.

    Attributes:
        pickled: handles that were pickled while their thread was not known to send; only ever compared.
        encoding: not empty while threads pickle with their name on the door.
        likely: the last value that was pickled in this way had references in it: so may the next one, and to pickle
            that only once it is done in this way from the start.
    """

    def __init__(self, process: Process) -> None:
        self.pickled = 0
        self.encoding: list[None] = []
        self.likely = False
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

    def created(self, rrid: RRID, owner: int, handle: Any, *, announced: bool = False) -> None:  # shielded
        """A handle to a new reference was made here; see `HolderBook.created`.

        The owner is told on first use, unless it is told otherwise (``announced``); at once if it is this process.
        """
        here = owner == self._process.pid
        if here:
            self._process.store.created(rrid)
        with self._lock:
            self._book.created(rrid, owner, handle, announced=announced or here)

    def never_told(self, rrid: RRID) -> None:  # shielded
        """The call that was to announce a new reference was not sent."""
        with self._lock:
            self._book.never_told(rrid)

    def arrived(self, rrid: RRID, owner: int, giver: int, make: Callable[[], H], times: int = 1) -> H:  # shielded
        """A reference arrived in a message; its canonical handle."""
        with self._lock:
            handle: H = self._book.arrived(rrid, owner, giver, make, times)
        return handle

    def declined(self, claim: Claim) -> None:  # shielded
        """A reference arrived in what cannot be rebuilt here, or is not wanted any more."""
        rrid, owner, giver, is_first = claim
        if owner != IN_THE_MARGIN or not self._process.blocks.counts(rrid):
            with self._lock:
                self._book.declined(rrid, giver if owner == IN_THE_MARGIN else owner, giver)
        if is_first:
            self._process.blocks.pin(rrid, None)
        self.flush()

    def handle(self, rrid: RRID) -> Any:
        """The canonical handle of a reference; None if none lives here."""
        with self._lock:
            return self._book.handle(rrid)

    def released(self, rrid: RRID) -> None:  # shielded
        """The handle needs its reference no more: the owner may free the value."""
        with self._lock:
            self._book.released(rrid)
        self.flush()

    def drop_process(self, pid: int) -> None:
        """A process is gone, and what it owned with it."""
        with self._lock:
            self._book.drop_owner(pid)
        self._process.blocks.drop_process(pid)

    def __len__(self) -> int:
        """How many references have a handle here."""
        return len(self._book)

    # ---- pickles ----------------------------------------------------------------------------------------------

    def met(self, rrid: RRID, owner: int) -> bool:
        """Called by a handle that is being pickled; False if it does not go to a process of the cluster."""
        self.likely = True
        met = self._sending.met
        if met is None:
            self.pickled += 1
            return False
        met.append((rrid, owner))
        return True

    def receiver(self) -> int | None:
        """Asked by a handle that is being pickled: for which process. 0: for several.

        None: for none of the cluster, as far as is known; then it is counted, as by `met`.
        """
        self.likely = True
        sending = self._sending
        if sending.met is None:
            self.pickled += 1
            return None
        return sending.receiver

    def met_bare(self, rrid: RRID) -> None:
        """Called by a handle that is being pickled as a bare reference, which is counted in the margin."""
        met = self._sending.met
        assert met is not None  # `receiver` has said so
        met.append((rrid, IN_THE_MARGIN))

    def encode(self, value: Any, pid: int, labels: Sequence[str] = ()) -> tuple[bytes, Any, bool]:
        """Pickle a value that may have references in it for process ``pid``, and give it its claims.

        Returned last is whether there were any. Blocks where it has to connect to the owner of one.
        """
        self.likely = False
        body, buffers, met = self._encode(value, labels, pid)
        if met:
            if captured.NESTED in body:  # its parts may have been pickled more than once
                met = _pairs(payload.claims(body, buffers))
            self._give(met, pid)
        return body, buffers, bool(met)

    def encode_captured(self, failure: captured.CapturedException, pid: int) -> tuple[bytes, Any]:
        """`captured.dump` for process ``pid``, which gets its claims on what the exception refers to.

        Blocks as `encode` does. A part that cannot be pickled is tried in several ways: what counts is what came of it.
        """
        body, buffers, met = self._encode(failure, (), pid, _dump_captured)
        if met:
            self._give(_pairs(captured.claims(body, buffers)), pid)
        return body, buffers

    def _give(self, met: Sequence[tuple[RRID, int]], pid: int) -> None:
        for owner in self._count(met, pid):
            self._reach(owner)

    def _count(self, met: Sequence[tuple[RRID, int]], pid: int) -> list[int]:  # shielded
        """Count claims, and tell the owners of them; those to whom there is no connection."""
        process = self._process
        owners = set()
        for rrid, owner in met:
            if owner == IN_THE_MARGIN:
                process.blocks.count(rrid.id, pid)
            elif owner == process.pid:
                # Without the detour through the book: an add that is heard early does no harm.
                process.store.change(((*rrid, edge(owner, pid), 1),))
            else:
                with self._lock:
                    self._book.given(rrid, owner, pid)
                owners.add(owner)
        unreached = []
        for owner in owners:
            peer = process.peers.get(owner)
            with self._lock:
                told = peer is not None and peer.lost is None and self._tell(owner)
            if not told:
                unreached.append(owner)
        return unreached

    def encode_for_all(self, value: Any, labels: Sequence[str] = ()) -> tuple[bytes, Any] | None:
        """Pickle a value for any number of processes. None if there are references in it: each process needs claims."""
        body, buffers, met = self._encode(value, labels)
        return None if met else (body, buffers)

    def _encode(
        self, value: Any, labels: Sequence[str], receiver: int = 0, dump: _Dump | None = None
    ) -> tuple[bytes, Any, list[tuple[RRID, int]]]:
        sending = self._sending
        outer = sending.met, sending.receiver  # what is being pickled may call: a __reduce__ that fetches something
        met: list[tuple[RRID, int]] = []
        sending.met, sending.receiver = met, receiver
        self.encoding.append(None)
        try:
            body, buffers = (dump or payload.dumps)(value, labels, met.clear)
        finally:
            sending.met, sending.receiver = outer
            self.encoding.pop()
        return body, buffers, met

    # ---- telling ----------------------------------------------------------------------------------------------

    def tell(self, owner: int) -> None:  # shielded
        """Tell ``owner``, to whom there is a connection, what it is to be told: before a request to it."""
        if self._book.has_changes():
            with self._lock:
                self._tell(owner)

    def flush(self) -> None:  # shielded
        """Tell every owner what it is to be told. Never blocks: what needs a connection first is left to a thread."""
        self._process.blocks.flush()  # first: it may have claims to add to those that are given up
        if not self._book.has_changes():
            return
        with self._lock:
            for owner in self._book.owners():
                if not self._tell(owner) and owner not in self._reaching:
                    self._reaching.add(owner)
                    self._process.spawn(lambda owner=owner: self._reach(owner), "hybriddist-claims")  # type: ignore[misc]

    def _tell(self, owner: int) -> bool:  # shielded
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


def _dump_captured(failure: captured.CapturedException, *_: Any) -> tuple[bytes, Any]:
    return captured.dump(failure)


def _pairs(claims: list[Claim]) -> list[tuple[RRID, int]]:
    """Claims as `References.met` notes them."""
    return [(claim.rrid, claim.owner) for claim in claims]


def relay_claims(owner: int, changes: Sequence[Change]) -> None:
    """Runs on the driver: tell a process what another one, which has no connection to it, has to tell."""
    this_process().fetch_call(apply_claims, owner, (changes,), {})


def apply_claims(changes: Sequence[Change]) -> None:
    """Runs on the owner."""
    this_process().store.change(changes)


__all__ = ["IN_THE_MARGIN", "Claim", "References", "claim"]
