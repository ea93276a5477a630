"""The line of a worker pool: who is free, who has whom, who waits; without threads, clocks and connections.

A `Fifo` whose items are pids and whose putters never wait. What it adds is that workers and takers die::

    take ──► free, oldest first ──► held, by which process ──► put: free again, or the next taker's
                  │                     │        └── the holder is gone: likewise
                  └── gone or leaving ──┴──► no member any more; with the last one, takers in the line are told

It looks at the membership before each operation, if that has changed since, so nobody is ever handed a worker that is
known to be gone. An outcome of CLOSED means that no member lives. What this module does not know: what tickets are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from hybriddist.core.exits import ExitReason
from hybriddist.core.fifo import CLOSED, DONE, Event, Fifo
from hybriddist.core.membership import Member, State
from hybriddist.ids import DRIVER


class Membership(Protocol):
    """What is asked of the membership."""

    changes: int

    def workers(self) -> list[int]:
        """The workers; the driver, if there are none."""

    def get(self, pid: int) -> Member | None:
        """The member, in whatever state."""

    def why_gone(self, pid: int) -> ExitReason | None:
        """Why a process is gone; None if it is not."""


class WorkerLine(Fifo):
    """The members of a pool, each free or held.

    Args:
        membership: of the process on which the pool lives.
        pids: the members, each once; None: all workers that there are, at any time, and the driver where there are
            none. The driver is then no member: it is handed out as often as it is asked for.
        holder_of: from a ticket to the process whose ticket it is.
    """

    __slots__ = ("_follows", "_holder_of", "_membership", "_seen", "gone", "holders", "members")

    def __init__(self, membership: Membership, pids: Iterable[int] | None, holder_of: Callable[[Any], int]) -> None:
        super().__init__(math.inf)
        self._membership = membership
        self._follows = pids is None
        self._holder_of = holder_of
        self._seen = -1
        """`changes` of the membership when it was last looked at."""
        self.members: dict[int, None] = dict.fromkeys(pids or ())
        self.items.extend(self.members)
        self.holders: dict[int, int] = {}
        """The members that are not free, each with the process that has taken it."""
        self.gone: list[int] = []
        """Those that were members once, of a line with members of its own."""

    # ---- in no time -------------------------------------------------------------------------------------------

    def take_now(self, holder: int) -> int:
        """As `take` by process ``holder``, if nothing else happens by it; 0: that is not so, and nothing was done."""
        if self.items and self._seen == self._membership.changes:
            pid: int = self.items.popleft()
            self.holders[pid] = holder
            return pid
        return 0

    def put_now(self, item: int) -> bool:
        """As `put`, if nothing else happens by it; False: that is not so, and nothing was done."""
        if self._takers or self._readers or self._seen != self._membership.changes:
            return False
        if self.holders.pop(item, None) is not None:
            self.items.append(item)
        return True

    # ---- operations -------------------------------------------------------------------------------------------

    def put(self, ticket: Any, item: int) -> list[Event]:
        """Make a member that is held free again. Of anything else there is nothing to do."""
        events = self.look()
        if self.holders.pop(item, None) is not None:
            events += self._free(item)
        events.append((ticket, DONE, None))
        return events

    def push(self, pid: int) -> list[Event]:
        """Add a free member, unless it is one, or lives no more."""
        events = self.look()
        if pid in self.members or (self._follows and pid == DRIVER):
            return events
        if self._works(pid):
            self.members[pid] = None
            events += self._free(pid)
        else:
            self._lose(pid)
        return events

    def take(self, ticket: Any) -> list[Event]:
        """Hold the member that has been free for longest; the ticket waits while all are held."""
        events = self.look()
        if self.items:
            events.append(self._hand(self.items.popleft(), ticket))
        elif self.members:
            self._takers[ticket] = None
        else:
            events.append(self._without_members(ticket))
        return events

    def read(self, ticket: Any, wants_item: bool) -> list[Event]:
        """Hear when there is something to take; the ticket waits while there is not, and while there are no members."""
        events = self.look()
        if self.is_ready():
            events.append((ticket, DONE, (self.items[0] if self.items else DRIVER) if wants_item else None))
        else:
            self._readers[ticket] = wants_item
        return events

    def give_back(self, item: int, ticket: Any = None) -> list[Event]:
        """As `put`, of a member that has not reached its taker: it is the next again. Not if somebody else has it."""
        events = self.look()
        if self.holders.get(item) == self._holder_of(ticket):
            del self.holders[item]
            events += self._free(item, first=True)
        return events

    def is_ready(self) -> bool:
        """Whether a take would not wait, and bring something."""
        return bool(self.items) or (self._follows and not self.members)

    # ---- coming and going -------------------------------------------------------------------------------------

    def look(self) -> list[Event]:
        """See who has come and gone."""
        membership = self._membership
        if self._seen == membership.changes:
            return []
        self._seen = membership.changes  # before looking: what changes meanwhile is looked at next time
        events: list[Event] = []
        for pid in [pid for pid in self.members if not self._works(pid)]:
            del self.members[pid]
            if self.holders.pop(pid, None) is None:
                self.items.remove(pid)
            self._lose(pid)
        if self._follows:
            for pid in membership.workers():
                if pid != DRIVER and pid not in self.members:
                    self.members[pid] = None
                    events += self._free(pid)
        for pid, holder in list(self.holders.items()):
            if membership.why_gone(holder) is not None:
                del self.holders[pid]
                events += self._free(pid)
        if not self.members:
            events += self._tell_that_nobody_is_left()
        return events

    def _lose(self, pid: int) -> None:
        if not self._follows and pid not in self.gone:
            self.gone.append(pid)

    def _works(self, pid: int) -> bool:
        if self._membership.why_gone(pid) is not None:
            return False
        member = self._membership.get(pid)
        return member is None or member.state is not State.LEAVING

    def _tell_that_nobody_is_left(self) -> list[Event]:
        events = [self._without_members(self._next_taker()) for _ in list(self._takers)]
        return (self._show(DRIVER) if self._follows else []) + events

    # ---- inside -----------------------------------------------------------------------------------------------

    def _free(self, pid: int, *, first: bool = False) -> list[Event]:
        events = self._show(pid)
        if self._takers:
            events.append(self._hand(pid, self._next_taker()))
        elif first:
            self.items.appendleft(pid)
        else:
            self.items.append(pid)
        return events

    def _hand(self, pid: int, ticket: Any) -> Event:
        self.holders[pid] = self._holder_of(ticket)
        return ticket, DONE, pid

    def _without_members(self, ticket: Any) -> Event:
        return (ticket, DONE, DRIVER) if self._follows else (ticket, CLOSED, None)
