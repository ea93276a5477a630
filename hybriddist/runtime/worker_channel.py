"""`WorkerChannel`: the free workers of a pool as a channel of pids.

A pool is a channel so that all which holds for taking from one holds here as well: threads of this process and requests
of others stand in one line, nothing is swallowed by a taker that gives up or dies, and a request blocks no thread. Put
behind a reference it serves other processes, and lives as long as one of them refers to it. What it hands out and takes
back is the business of its line (``core/worker_line.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hybriddist.core.worker_line import WorkerLine
from hybriddist.runtime.channels import Channel
from hybriddist.runtime.roster import Roster


class WorkerChannel(Channel):
    """A channel that holds the free members of a pool.

    Args:
        own_pid: this process.
        membership: what it knows of the others.
        pids: the members; None: all workers, at any time.
    """

    def __init__(self, own_pid: int, membership: Roster, pids: Iterable[int] | None) -> None:
        super().__init__(math.inf)
        self._own_pid = own_pid

        def holder_of(ticket: Any) -> int:
            peer = getattr(ticket, "peer", None)  # a request of another process has one, a thread of ours has not
            return own_pid if peer is None else peer.pid

        self._fifo = self._line = WorkerLine(membership, pids, holder_of)
        membership.watch(self)

    def take(self, *, timeout: float | None = None) -> Any:
        """As `Channel.take`, and quicker if a member is free."""
        # A plain call, as those of `Channel`: behind it there is no gap in which a Ctrl-C could strike.
        return self.take_now() or super().take(timeout=timeout)

    def take_now(self) -> int:  # shielded
        """A free member; 0 if it takes more than to look."""
        with self._lock:
            return self._line.take_now(self._own_pid)

    def put(self, item: Any, *, timeout: float | None = None) -> WorkerChannel:  # shielded
        """Put a member back. Never waits."""
        with self._lock:
            done = self._line.put_now(item)
        if not done:
            super().put(item)
        return self

    def membership_changed(self) -> None:
        """A process has come or gone."""
        self.begin(self._line.look)

    def push(self, pid: int) -> None:
        """Make a process a member."""
        self.begin(self._line.push, pid)

    def isready(self) -> bool:
        """Whether a member is free now."""
        self.begin(self._line.look)
        return self._line.is_ready()

    def isempty(self) -> bool:
        """Whether none is."""
        return not self.isready()

    def members(self) -> list[int]:
        """The members that live, in the order in which they were added."""
        self.begin(self._line.look)
        return list(self._line.members)

    def gone(self) -> list[int]:
        """Those that were members, and live no more."""
        return list(self._line.gone)
