"""Shared memory that connections have, and have not used for a while, goes back to the node.

An arena looks after that itself when it is used. This is for the one that is not: a program that has sent large arrays,
and does something else for an hour::

    first segment taken ─► due ─► look at each connection ─► due again, or nothing is held any more
                                       └─ segments idle for 10 s: given back; the peer's bell, and it unmaps them

Whoever receives does it, between two waits. What this module does not know: what segments are.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

_LOOK_SECONDS: Final = 5.0
"""Between two looks while there is something to look at. A process that holds nothing is not woken at all."""


class Trimming:
    """When the connections of one process are looked at next.

    Attributes:
        due: the time of the next look (`time.monotonic`); None: nothing is held.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.due: float | None = None

    def begin(self) -> None:
        """A connection has taken shared memory. Callable from any thread, never blocks."""
        if self.due is None:
            self.due = monotonic() + _LOOK_SECONDS
            self._process.poller.wake()  # whoever receives may have begun to wait without a limit

    def look(self) -> None:
        """If it is due: have what is idle given back."""
        due = self.due
        if due is None or due > monotonic():
            return
        self.due = None  # first: what is taken meanwhile makes it due again
        if any([peer.lost is None and peer.transport.trim() for peer in list(self._process.peers.values())]):
            self.due = monotonic() + _LOOK_SECONDS
