"""Who holds what: the counting of remote references across the cluster.

A value lives on one process, its *owner*, and must stay there exactly as long as some process has a handle to it.
Handles travel inside messages, messages on different connections overtake each other, and processes die. The owner
keeps an `OwnerBook` of claims; every process keeps a `HolderBook` of the claims it was given.

This module does no I/O, starts no thread and knows no message: books turn facts into *changes*, plain tuples
``(whence, id, edge, delta)`` that some ordered path takes to the owner. The caller holds the locks.

**A claim** is made by a giver for a receiver, so the owner counts per *edge* ``giver -> receiver``::

      driver 1              owner 2                worker 3            worker 4
         | creates ref, keeps it |                      |                   |
         |------- (1->1, +1) --->|  {1->1: 1}           |                   |
         |------- (1->3, +1) --->|  {1->1: 1, 1->3: 1}  |                   |
         |====== message with the reference ===========>| credit from 1     |
         |                       |                      |=== reference ====>| credit from 3
         |                       |<---------- (3->4, -1) -------------------| drops it
         |                       |  {..., 3->4: -1}     |                   |      this one overtook
         |                       |<---- (3->4, +1) -----|                   |      that one: no harm
         |------- (1->1, -1) --->|  {1->1: 0, 1->3: 1}  |                   |
         |                       |<---- (1->3, -1) -----| drops it          |
         |                       |  no edge above zero: free                |

Rules of the sender: every copy of a reference put into a message for process B, also when B is the owner, is one
``(self -> B, +1)``, told to the owner on the same path as, and before, any later release of one's own claims. A
release returns each credit on the edge on which it came.

**The value is freed when no edge is positive and the creator's first claim has been heard.** Why that is safe:
suppose X holds a claim given by Y, and edge Y->X is not positive. Then an add of Y is still under way. When Y sent
it, Y held a claim of its own, and all that Y released later is behind that add on the same path; so Y's own edge
is positive, or an add for Y is under way that was sent still earlier. Going back in time this ends at the creator,
whose first claim has been heard: some edge is positive. Before that first claim is heard the argument has no
ground, and claims may come and go without freeing anything: the creator's own edge stays in the book, even at
zero, as the mark that it was heard. Why it is live: once all is dropped and delivered every edge is zero.

**Deaths.** The dead process's own claims vanish, and nothing is accepted any more from it or about it. Adds of it
that were lost leave an edge negative: such an edge is struck. This is why edges and not receivers are counted: by
receiver, the debt left by a dead giver would cancel a sound claim from a living one, and free what is in use. Two
limits remain. Who got a reference from a process that died before its add was delivered may find the value freed.
And an add whose reference was lost with the dying sender keeps the value until the receiver leaves.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from hybriddist.ids import RRID

Change = tuple[int, int, int, int]
"""(whence, id, edge, delta): ``delta`` more claims on the reference, on that edge. Fits `messages.Claims`."""

_SHIFT: Final = 32
_RECEIVER: Final = (1 << _SHIFT) - 1


def edge(giver: int, receiver: int) -> int:
    """The edge on which ``giver`` makes claims for ``receiver``, as one number that fits 64 signed bits."""
    return giver << _SHIFT | receiver


def ends(edge_: int) -> tuple[int, int]:
    """The giver and the receiver of an edge."""
    return edge_ >> _SHIFT, edge_ & _RECEIVER


class OwnerBook:
    """Claims on the references that this process owns."""

    __slots__ = ("_claims", "_gone")

    def __init__(self) -> None:
        self._claims: dict[RRID, dict[int, int]] = {}
        self._gone: set[int] = set()

    def created(self, rrid: RRID) -> bool:
        """Count the creator's first claim, which a call with a reference (modes STORE, WAIT) carries by itself.

        Returns:
            As `apply`. True also when the creator is gone already: nobody will ever fetch the value.
        """
        if rrid.whence in self._gone:
            return not self.holders(rrid)
        return self.apply(rrid.whence, rrid.id, edge(rrid.whence, rrid.whence), 1)

    def apply(self, whence: int, id: int, edge_: int, delta: int) -> bool:
        """Count one change.

        Changes of one process must be applied in the order in which it made them. A change from or about a process
        that is gone is ignored.

        Returns:
            True if nobody holds the reference now: drop its value, if there is one. It may be said more than once.
        """
        giver, receiver = edge_ >> _SHIFT, edge_ & _RECEIVER
        gone = self._gone
        if receiver in gone:
            return False
        if giver in gone and delta >= 0:
            return False
        rrid = RRID(whence, id)
        claims = self._claims.get(rrid)
        if claims is None:
            claims = self._claims[rrid] = {}
        count = claims.get(edge_, 0) + delta
        if giver in gone and count < 0:
            count = 0  # the add died with its giver: there is nothing to wait for
        if count or (giver == whence and receiver == whence):
            claims[edge_] = count
        else:
            claims.pop(edge_, None)
        return self._settle(rrid, claims)

    def drop_process(self, pid: int) -> list[RRID]:
        """Strike the claims of a process that is gone. Looks at every reference; pids never come back.

        Returns:
            The references that nobody holds any more.
        """
        self._gone.add(pid)
        freed = []
        for rrid, claims in list(self._claims.items()):
            touched = False
            for each, count in list(claims.items()):
                giver, receiver = ends(each)
                if receiver == pid or (giver == pid and count <= 0):
                    del claims[each]
                    touched = True
            if touched and self._settle(rrid, claims):
                freed.append(rrid)
        return freed

    def held(self) -> list[RRID]:
        """The references on which somebody has a claim, sorted."""
        return sorted(rrid for rrid, claims in self._claims.items() if any(count > 0 for count in claims.values()))

    def holders(self, rrid: RRID) -> list[int]:
        """The processes that have a claim on ``rrid`` as far as heard, sorted."""
        claims = self._claims.get(rrid, {})
        return sorted({ends(each)[1] for each, count in claims.items() if count > 0})

    def __len__(self) -> int:
        """How many references have an entry, also those whose claims are only partly heard."""
        return len(self._claims)

    def _settle(self, rrid: RRID, claims: dict[int, int]) -> bool:
        """Remove what need not be remembered; True if nobody holds the reference."""
        for count in claims.values():
            if count > 0:
                return False
        mark = edge(rrid.whence, rrid.whence)
        freed = mark in claims or rrid.whence in self._gone
        if freed:
            claims.pop(mark, None)
        if not claims:
            del self._claims[rrid]
        return freed


H = TypeVar("H")


class _Holding(weakref.ref[Any]):
    """The credits of one handle, kept in the weak reference to it.

    The reference's callback is the `append` of a deque: when the handle dies, in whatever thread and in the middle
    of whatever, the holding itself is appended, without a lock and without a line of Python that a signal could
    interrupt.
    """

    __slots__ = ("bell", "credits", "owner", "rrid")

    rrid: RRID
    owner: int
    credits: dict[int, int]
    """How many credits came from which giver."""
    bell: weakref.ref[Any] | None
    """Kept alive with the holding: its callback tells that something is to be collected."""


class HolderBook(Generic[H]):
    """The references that this process has handles to, and what their owners are still to be told.

    There is one canonical handle per reference: a reference that arrives again gives the same handle and one more
    credit. Handles are held weakly; when one dies its credits become changes. Handles must allow weak references.

    Ordering: take the changes for an owner and send them while holding the lock under which messages to that owner
    are sent, before any message that mentions a reference of the owner. Adds should leave before the message with
    the reference does: if this process dies between the two, the receiver's claim is unheard. Releases may wait.

    Args:
        pid: this process.
        notify: called when a handle has died, from its finaliser: it may only wake somebody. Not called again before
            the dead have been collected (`owners`, `take_changes`).
    """

    __slots__ = ("_changes", "_dropped", "_gone", "_holdings", "_notified", "_notify", "pid")

    def __init__(self, pid: int, notify: Callable[[], None] | None = None) -> None:
        self.pid = pid
        self._notify = notify
        self._notified = False
        self._holdings: dict[RRID, _Holding] = {}
        self._changes: dict[int, dict[RRID, dict[int, int]]] = {}
        self._dropped: deque[_Holding] = deque()
        self._gone: set[int] = set()

    # ---- facts ------------------------------------------------------------------------------------------------

    def created(self, rrid: RRID, owner: int, handle: H, *, announced: bool) -> None:
        """This process made a new reference.

        Args:
            rrid: its identity; ``whence`` is this process.
            owner: where the value lives.
            handle: the canonical handle from now on.
            announced: True if the call that creates the value tells the owner (`OwnerBook.created`); False if the
                claim is to be among the changes.
        """
        self._hold(rrid, owner, handle).credits[self.pid] = 1
        if not announced:
            self._change(owner, rrid, edge(self.pid, self.pid), 1)

    def never_told(self, rrid: RRID) -> None:
        """What was to announce a reference that this process has just created was not sent: the owner knows nothing."""
        holding = self._holdings.pop(rrid, None)
        if holding is not None:
            holding.credits = {}

    def arrived(self, rrid: RRID, owner: int, giver: int, make: Callable[[], H], times: int = 1) -> H:
        """A reference came in a message from ``giver``.

        The giver is whoever made the claim: it is to be written into the pickle beside the reference, because bytes
        may reach us through a third process.

        Args:
            make: makes the handle if there is none alive; it must not use this book.
            times: how often it came.

        Returns:
            The canonical handle.
        """
        holding = self._holdings.get(rrid)
        handle: H | None = None if holding is None else holding()
        if holding is None or handle is None:
            handle = make()
            holding = self._hold(rrid, owner, handle)
        credits = holding.credits
        credits[giver] = credits.get(giver, 0) + times
        return handle

    def given(self, rrid: RRID, owner: int, receiver: int) -> None:
        """A reference that we hold goes into a message for ``receiver``, once for every copy that is unpickled."""
        self._change(owner, rrid, edge(self.pid, receiver), 1)

    def declined(self, rrid: RRID, owner: int, giver: int) -> None:
        """A reference came in a message from ``giver``, as in `arrived`, and there will be no handle for it."""
        self._change(owner, rrid, edge(giver, self.pid), -1)

    def released(self, rrid: RRID) -> None:
        """Give up the reference now, while its handle still lives. Without effect if there is none."""
        holding = self._holdings.get(rrid)
        if holding is not None:
            self._retire(holding)

    def drop_owner(self, pid: int) -> None:
        """The owner is gone: forget what it was to be told, now and later. Handles stay canonical."""
        self._gone.add(pid)
        self._changes.pop(pid, None)

    # ---- questions --------------------------------------------------------------------------------------------

    def handle(self, rrid: RRID) -> H | None:
        """The canonical handle, if one lives."""
        holding = self._holdings.get(rrid)
        return None if holding is None else holding()

    def __len__(self) -> int:
        """How many references have a handle, or had one that was not collected yet."""
        return len(self._holdings)

    def has_changes(self) -> bool:
        """Whether some owner is to be told something. May be asked without a lock; it may be out of date at once."""
        return bool(self._dropped or self._changes)

    def owners(self) -> list[int]:
        """The owners that are to be told something, sorted."""
        self._collect()
        return sorted(self._changes)

    def take_changes(self, owner: int) -> list[Change]:
        """What ``owner`` is to be told now; the caller must send it.

        Changes are merged by edge. Positive ones come first, then zeros, then negative ones: whoever applies them
        one by one is then never below the true state between two. What sums to zero is left out: the state before
        equals the state after, and nothing in between was seen. With one exception: if this process created the
        reference, its first claim may be within the sum, and the owner frees nothing before it has heard of that
        claim. So that zero is sent if anything else about the reference is; if nothing is, the owner never hears
        of the reference at all.
        """
        self._collect()
        gains: list[Change] = []
        marks: list[Change] = []
        losses: list[Change] = []
        own = edge(self.pid, self.pid)
        for rrid, sums in self._changes.pop(owner, {}).items():
            whence, id_ = rrid
            for each, delta in sums.items():
                if delta > 0:
                    gains.append((whence, id_, each, delta))
                elif delta < 0:
                    losses.append((whence, id_, each, delta))
                elif each == own and whence == self.pid and len(sums) > 1:
                    marks.append((whence, id_, each, 0))
        return gains + marks + losses

    # ---- inside -----------------------------------------------------------------------------------------------

    def _hold(self, rrid: RRID, owner: int, handle: H) -> _Holding:
        earlier = self._holdings.get(rrid)
        if earlier is not None:  # its handle died, perhaps this very moment, with the callback still to come
            self._retire(earlier)
        # Of several weak references to one object the callback of the newest runs first: the append before the bell.
        bell = None if self._notify is None else weakref.ref(handle, self._ring)
        holding = _Holding(handle, self._dropped.append)
        holding.bell = bell
        holding.rrid = rrid
        holding.owner = owner
        holding.credits = {}
        self._holdings[rrid] = holding
        return holding

    def _ring(self, _: weakref.ref[H]) -> None:
        if not self._notified and self._notify is not None:
            self._notified = True
            self._notify()

    def _collect(self) -> None:
        # First the flag, then the look: a handle that dies in between rings once too often, never once too little.
        self._notified = False
        dropped = self._dropped
        while dropped:
            self._retire(dropped.popleft())

    def _retire(self, holding: _Holding) -> None:
        """Turn the credits into changes, once: the credits are gone afterwards, so that repeating does nothing."""
        if self._holdings.get(holding.rrid) is holding:
            del self._holdings[holding.rrid]
        credits, holding.credits = holding.credits, {}
        for giver, count in credits.items():
            self._change(holding.owner, holding.rrid, edge(giver, self.pid), -count)

    def _change(self, owner: int, rrid: RRID, edge_: int, delta: int) -> None:
        if owner in self._gone:
            return
        sums = self._changes.setdefault(owner, {}).setdefault(rrid, {})
        sums[edge_] = sums.get(edge_, 0) + delta
