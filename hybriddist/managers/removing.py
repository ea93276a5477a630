"""Removing workers: polite request, SIGTERM, SIGKILL; each worker on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybriddist import limits
from hybriddist.core.exits import ExitReason
from hybriddist.deadline import Deadline
from hybriddist.errors import RemovalTimeout

if TYPE_CHECKING:
    from hybriddist.cluster import Cluster

_GONE_SECONDS = 2.0
"""From the end of the process to the end of its connection, which the other side's kernel tells at once."""


class Removal:
    """The removal of some workers: what `rmprocs` returns."""

    def __init__(self, cluster: Cluster, pids: Sequence[int]) -> None:
        self._cluster = cluster
        self._pids = list(pids)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; returns at once."""
        for pid in self._pids:
            thread = threading.Thread(target=self._remove, args=(pid,), name=f"hybriddist-remove-{pid}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def isready(self) -> bool:
        """Whether all are gone."""
        return not self._left()

    def wait(self, timeout: float | None = None) -> Removal:
        """Wait until all are gone.

        Raises:
            RemovalTimeout: not within ``timeout`` seconds; the removal goes on.
        """
        self.wait_for(timeout)
        return self

    def wait_for(self, seconds: float | None) -> None:
        """`wait`, without a value."""
        deadline = Deadline(seconds)
        for thread in self._threads:
            thread.join(deadline.remaining())
        left = self._left()
        if left:
            raise RemovalTimeout(left, seconds if seconds is not None else 0.0)

    def _left(self) -> list[int]:
        return [pid for pid, thread in zip(self._pids, self._threads, strict=True) if thread.is_alive()]

    def _remove(self, pid: int) -> None:
        cluster = self._cluster
        membership = cluster.process.membership
        config, manager = cluster.configs.get(pid), cluster.managers.get(pid)
        cluster.ask_to_leave(pid)
        child = None if config is None else config.process
        if hasattr(child, "exit_status"):
            ended = child.wait(Deadline(limits.POLITE_EXIT_SECONDS)) is not None
        else:
            ended = membership.wait_gone(pid, limits.POLITE_EXIT_SECONDS)
        if not ended and manager is not None and config is not None:
            manager.kill(pid, config)
        if not membership.wait_gone(pid, _GONE_SECONDS):
            cluster.drop(pid, ExitReason.removed())
