"""Shared memory that connections have, and have not used for a while, goes back to the node.

An arena looks after that itself when it is used. This is for the one that is not: a program that has sent large arrays,
and does something else for an hour::

    first segment taken ─► due ─► look at each connection ─► due again, or nothing is held any more
                                       └─ segments idle for 10 s: given back; the peer's bell, and it unmaps them

Whoever receives does it, between two waits. What this module does not know: what segments are.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

_LOOK_SECONDS: Final = 5.0
"""Between two looks while there is something to look at. A process that holds nothing is not woken at all."""


class Trimming:
    """When the connections of one process are looked at next."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._due = math.inf

    def begin(self) -> None:
        """A connection has taken shared memory. Callable from any thread, never blocks."""
        if self._due == math.inf:
            self._due = monotonic() + _LOOK_SECONDS
            self._process.poller.wake()  # whoever receives may have begun to wait without a limit

    def seconds(self) -> float | None:
        """Until the next look; None: nothing is held."""
        due = self._due
        return None if due == math.inf else max(0.0, due - monotonic())

    def look(self) -> None:
        """If it is due: have what is idle given back."""
        if self._due == math.inf or self._due > monotonic():
            return
        self._due = math.inf  # first: what is taken meanwhile makes it due again
        if any([peer.lost is None and peer.transport.trim() for peer in list(self._process.peers.values())]):
            self._due = monotonic() + _LOOK_SECONDS
