"""Removing workers: polite request, SIGTERM, SIGKILL; each worker on a thread of its own.

::

    rmprocs ──► mark as leaving ──► Leave ──► gone in time? ──yes──────────────► noticed by its connection's end
                (no more work)                     └─no──► manager.kill ──► gone? ──no──► given up: dropped

What this module does not know: what a polite worker does (``runtime/handlers.py``), and how a manager kills.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from hybriddist import limits
from hybriddist.core.exits import ExitReason
from hybriddist.deadline import NEVER, Deadline
from hybriddist.errors import RemovalTimeout
from hybriddist.ids import DRIVER
from hybriddist.managers.driver import Cluster
from hybriddist.runtime.child import Child

_GONE_SECONDS: Final = 2.0
"""From the end of a process to the end of its connection, which the other side's kernel tells at once."""

_SHUTDOWN_POLITE_SECONDS: Final = 1.0
"""At the driver's end a worker has less time; SIGTERM and SIGKILL have to fit into `limits.SHUTDOWN_SECONDS` too."""


class Removal:
    """The removal of some workers: what `rmprocs` returns."""

    def __init__(
        self, cluster: Cluster, pids: Sequence[int], polite: float | None = None, deadline: Deadline = NEVER
    ) -> None:
        self._cluster = cluster
        self._polite = limits.POLITE_EXIT_SECONDS if polite is None else polite
        self._deadline = deadline
        """For all of it; whoever is there then is left to others."""
        self._left = list(dict.fromkeys(pids))
        self._lock = threading.RLock()  # taken as it is: see `Roster`
        self._changed = threading.Condition(self._lock)

    def start(self) -> None:
        """Begin, or line up behind an `addprocs` that is under way; returns at once.

        Not on this thread, which Ctrl-C may strike: a worker that is marked as leaving, and that nobody removes, would
        be waited for for ever.
        """
        lock = self._cluster.lock
        if not lock.acquire(blocking=False):
            self._spawn(self._begin_in_turn, "hybriddist-remove")
            return
        begun = threading.Event()
        try:
            self._spawn(partial(self._begin, begun), "hybriddist-remove")
            begun.wait(self._deadline.remaining())
        finally:
            lock.release()

    def isready(self) -> bool:
        """Whether all are gone."""
        return not self._left

    def wait(self, timeout: float | None = None) -> Removal:
        """Wait until all are gone.

        Raises:
            RemovalTimeout: not within ``timeout`` seconds; the removal goes on.
        """
        with self._lock:
            if not self._changed.wait_for(self.isready, Deadline(timeout).remaining()):
                raise RemovalTimeout(sorted(self._left), timeout or 0.0)
        return self

    def _begin_in_turn(self) -> None:
        with self._cluster.lock:
            self._begin(threading.Event())

    def _begin(self, begun: threading.Event) -> None:
        cluster = self._cluster
        try:
            for pid in list(self._left):
                if cluster.leaving(pid):
                    self._spawn(partial(self._remove, pid), f"hybriddist-remove-{pid}")
                elif cluster.process.membership.get(pid) is None:
                    self._gone(pid)
                else:  # another rmprocs, or its own death, is at it
                    self._spawn(partial(self._watch, pid), f"hybriddist-remove-{pid}")
        finally:
            begun.set()

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        try:
            self._cluster.process.spawn(target, name)
        except RuntimeError:  # the system allows no more threads: removing workers is the way out, so do it here
            target()

    def _remove(self, pid: int) -> None:
        cluster = self._cluster
        membership = cluster.process.membership
        config, manager = cluster.configs.get(pid), cluster.managers.get(pid)
        peer = cluster.process.peers.get(pid)
        cluster.events.exiting(pid, cluster.process.spawn, cluster.callback_seconds)
        cluster.ask_to_leave(pid)
        child = None if config is None else config.process
        if isinstance(child, Child):
            ended = child.wait(self._deadline.sooner(self._polite)) is not None
        else:
            ended = membership.wait_gone(pid, self._deadline.sooner(self._polite).remaining())
        try:
            if not ended and manager is not None and config is not None and not self._deadline.expired():
                manager.kill(pid, config)
        finally:
            if not membership.wait_gone(pid, _GONE_SECONDS):
                cluster.drop(pid, ExitReason.removed())
            if peer is not None:
                cluster.process.links.gone(peer)  # returns when the other workers have been told
            else:
                cluster.finish(pid)
            cluster.wait_finished(pid, cluster.callback_seconds)
            self._gone(pid)

    def _watch(self, pid: int) -> None:
        # At the driver's end Python starts no more threads: then this is the thread that all depends on.
        if self._cluster.process.membership.wait_gone(pid, self._deadline.remaining()):
            self._gone(pid)

    def _gone(self, pid: int) -> None:
        with self._lock:
            self._left.remove(pid)
            self._changed.notify_all()


def shut_down(cluster: Cluster) -> None:
    """Remove every worker and close everything, in at most about `limits.SHUTDOWN_SECONDS`.

    Does nothing in a copy that the driver has forked: the workers are not the copy's.
    """
    if cluster.ospid != os.getpid() or cluster.closed:
        return
    cluster.closed = True
    deadline = Deadline(limits.SHUTDOWN_SECONDS)
    try:
        if cluster.launching is not None:
            cluster.launching.give_up()
        pids = [member.pid for member in cluster.process.membership.members() if member.pid != DRIVER]
        removal = Removal(cluster, pids, _SHUTDOWN_POLITE_SECONDS, deadline)
        removal.start()
        try:
            removal.wait(deadline.remaining())
        except RemovalTimeout:
            pass  # what is left now ends by force
    finally:  # also when Ctrl-C comes a second time
        cluster.close()
