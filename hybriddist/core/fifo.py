"""A bounded queue with those who wait for it: what a channel is, without threads, clocks and connections.

Whoever wants something comes with a *ticket*, any hashable object, and is served at once or waits in line. Each
operation returns what has happened by it, as a list of *events* ``(ticket, outcome, item)``, in the order in which they
are to be made known: he who took an item comes before him who put it, so that a putter may change his object as soon
as he hears that it is taken::

      putters ──► items (at most `capacity`) ──► takers       an item goes to one of them
      waiting         oldest first          └──► readers      those see it and leave it there
      for room                                   waiting for an item

A ticket that waits can be withdrawn, and is then as if it had never come. An item that was taken for somebody who has
gone can be given back, to the front. The caller holds a lock around every method, and lets go of it before it acts on
the events. What this module does not know: what items and tickets are.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

DONE: Final = 0
"""The operation has succeeded; for takers and readers, with the item."""

CLOSED: Final = 1
"""The channel is closed: the operation has failed."""

Event = tuple[Any, int, Any]
"""The ticket, DONE or CLOSED, and the item."""


class Fifo:
    """Items in the order in which they were put, and tickets in the order in which they came.

    Args:
        capacity: how many items it holds; 0: an item passes from putter to taker directly; `math.inf`: no limit.
    """

    __slots__ = ("_putters", "_readers", "_takers", "capacity", "is_open", "items")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.is_open = True
        self.items: deque[Any] = deque()
        self._takers: dict[Any, None] = {}
        self._readers: dict[Any, bool] = {}
        """Each with whether it wants an item, or only to know that there is one."""
        self._putters: dict[Any, Any] = {}

    # ---- operations -------------------------------------------------------------------------------------------

    def put(self, ticket: Any, item: Any) -> list[Event]:
        """Add an item; the ticket waits while there is no room."""
        if not self.is_open:
            return [(ticket, CLOSED, None)]
        if self._takers:
            events = self._show(item) if self._readers else []
            events.append((self._next_taker(), DONE, item))
            events.append((ticket, DONE, None))
            return events
        if len(self.items) < self.capacity:
            self.items.append(item)
            if self._readers:
                events = self._show(item)
                events.append((ticket, DONE, None))
                return events
            return [(ticket, DONE, None)]
        self._putters[ticket] = item
        return self._show(item) if self._readers else []

    def take(self, ticket: Any) -> list[Event]:
        """Remove the oldest item; the ticket waits while there is none."""
        items = self.items
        if items:
            events: list[Event] = [(ticket, DONE, items.popleft())]
            if self._putters:
                self._admit(events)
            return events
        if self._putters:  # unbuffered
            putter = next(iter(self._putters))
            return [(ticket, DONE, self._putters.pop(putter)), (putter, DONE, None)]
        if not self.is_open:
            return [(ticket, CLOSED, None)]
        self._takers[ticket] = None
        return []

    def read(self, ticket: Any, wants_item: bool) -> list[Event]:
        """See the oldest item, or only that there is one; the ticket waits while there is none.

        An unbuffered queue has no item to see: there, only what it means that a putter waits can be asked for.
        """
        if self.items:
            return [(ticket, DONE, self.items[0] if wants_item else None)]
        if self._putters:
            return [(ticket, DONE, None)]
        if not self.is_open:
            return [(ticket, CLOSED, None)]
        self._readers[ticket] = wants_item
        return []

    def close(self) -> list[Event]:
        """Accept nothing more. What is in the queue can still be taken; whoever waits is told. Idempotent."""
        self.is_open = False
        waiting = [*self._takers, *self._readers, *self._putters]
        self._takers.clear()
        self._readers.clear()
        self._putters.clear()
        return [(ticket, CLOSED, None) for ticket in waiting]

    # ---- second thoughts --------------------------------------------------------------------------------------

    def withdraw(self, ticket: Any) -> bool:
        """Take a ticket out of the line; False if it does not wait."""
        for line in (self._takers, self._readers, self._putters):
            if ticket in line:
                del line[ticket]
                return True
        return False

    def give_back(self, item: Any, ticket: Any = None) -> list[Event]:
        """An item that was taken with ``ticket``, and did not reach its taker: it is the oldest again, or another's."""
        events = self._show(item)
        if self._takers:
            events.append((self._next_taker(), DONE, item))
        else:
            self.items.appendleft(item)  # one more than the capacity, perhaps: it has been in here before
        return events

    # ---- questions --------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether somebody could take an item now."""
        return bool(self.items or self._putters)

    def waiting(self) -> int:
        """How many tickets wait."""
        return len(self._takers) + len(self._readers) + len(self._putters)

    # ---- inside -----------------------------------------------------------------------------------------------

    def _next_taker(self) -> Any:
        taker = next(iter(self._takers))
        del self._takers[taker]
        return taker

    def _show(self, item: Any) -> list[Event]:
        """There is an item: everybody who waits to see one."""
        events: list[Event] = [(ticket, DONE, item if wants else None) for ticket, wants in self._readers.items()]
        self._readers.clear()
        return events

    def _admit(self, events: list[Event]) -> None:
        """There is room again: the first putter's item moves in."""
        if len(self.items) < self.capacity:
            putter = next(iter(self._putters))
            self.items.append(self._putters.pop(putter))
            events.append((putter, DONE, None))
