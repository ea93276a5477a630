"""Clusters that live for the length of a ``with`` block, for tests of programs that use this library.

``throwaway_cluster``: real workers, started before the block and removed after it.

``memory_cluster``: a driver and its workers all inside this interpreter, joined by memory transports: a full cluster
in a millisecond, without a process, a socket of the network or shared memory::

                         this interpreter
    ┌──────────────────────────────────────────────────────────┐
    │  Process 1 (driver) ══ memory pair ══ Process 2          │   each Process has threads of its own that receive
    │        ╚════ memory pair ════ Process 3 ═ memory pair ═╝ │   and run calls, and a store, and books
    └──────────────────────────────────────────────────────────┘

What differs from real workers: there is one ``__main__`` and one set of modules for all, a call that ends the process
ends the test, and a thread that a call starts by itself works for the driver. Everything between is the same code.
"""

from __future__ import annotations

import atexit
import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from hybriddist.cluster import addprocs, rmprocs, shutdown
from hybriddist.core import payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import Member, State
from hybriddist.core.messages import Members
from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, TransportError
from hybriddist.ids import DRIVER
from hybriddist.listing import nprocs
from hybriddist.memory import PIPE_BYTES, memory_pair
from hybriddist.runtime.context import become, known
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process
from hybriddist.transport import Transport

_JOIN_SECONDS = 10.0
_CLOSE_SECONDS = 2.0


@contextmanager
def throwaway_cluster(n: int | None = None, **keywords: Any) -> Iterator[list[int]]:
    """Local workers for the length of the block.

    Args:
        n: how many; by default as many as there are usable CPUs.
        **keywords: of `addprocs`.

    Yields:
        Their pids. Workers from before the block are not touched; where there were none, everything is shut down.

    Example::

        with throwaway_cluster(2) as pids:
            assert hd.remotecall_fetch(pow, pids[0], 2, 3) == 8
    """
    alone = nprocs() == 1
    try:
        pids = addprocs(n, **keywords)
        try:
            yield pids
        finally:
            rmprocs(pids)
    finally:
        if alone:
            shutdown()


@contextmanager
def memory_cluster(
    n: int, *, topology: str = "all_to_all", capacity_bytes: int = PIPE_BYTES
) -> Iterator[MemoryCluster]:
    """A cluster inside this interpreter for the length of the block.

    The public functions work for its driver meanwhile, in every thread. A real cluster, if there is one, is out of
    sight until the block ends.

    Args:
        n: how many workers.
        topology: as of `addprocs`: "all_to_all" or "master_worker".
        capacity_bytes: what each direction of each connection holds before a sender has to wait.

    Example::

        with memory_cluster(2) as cluster:
            assert hd.remotecall_fetch(hd.myid, cluster.pids[0]) == 2
    """
    outer = known()
    cluster = MemoryCluster(topology, capacity_bytes)
    become(cluster.driver)
    try:
        for _ in range(n):
            cluster.add()
        yield cluster
    finally:
        become(outer)
        cluster.close()


class MemoryCluster:
    """What `memory_cluster` yields.

    Attributes:
        driver: process 1.
        workers: the other processes, by pid.
    """

    def __init__(self, topology: str, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self.driver = Process(DRIVER, cookie="not asked for in here")
        self.driver.on_exit = self._on_exit
        self.driver.membership.choose_topology(topology)
        self.driver.guard.install()
        self.driver.start()
        self.workers: dict[int, Process] = {}

    @property
    def pids(self) -> list[int]:
        """The workers, sorted."""
        return sorted(self.workers)

    def add(self) -> int:
        """One more worker: its pid."""
        membership = self.driver.membership
        pid = membership.allocate_pid()
        worker = self.workers[pid] = Process(0, cookie=self.driver.cookie)
        worker.addresses = [f"memory:{pid}"]
        worker.paths.openers["memory"] = self._connect
        worker.start()
        member = membership.add(Member(pid))
        _, answer = self.driver.links.join(
            pid,
            self._connect(str(pid)),
            {"pid": pid, "members": membership.snapshot(), "probe": None},
            Deadline(_JOIN_SECONDS),
        )
        member.ospid, member.host, member.addresses = answer["ospid"], answer["host"], answer["addresses"]
        membership.joined(pid, same_node_as=DRIVER)
        body = payload.dumps(membership.snapshot())[0]
        for peer in list(self.driver.peers.values()):
            with suppress(TransportError):  # it has crashed just now
                peer.post(Members(body))
        return pid

    def crash(self, pid: int) -> None:
        """End a worker as if it had been killed: all of its connections break. Calls that run on it go on unheard."""
        worker = self.workers.pop(pid)
        worker.leaving.set()
        for peer in list(worker.peers.values()):
            peer.abort()
        worker.close(0.0)

    def close(self) -> None:
        """End everything."""
        processes = [*self.workers.values(), self.driver]
        self.workers.clear()
        if self.driver.owner is not None:  # a test has asked it to remove somebody, say
            atexit.unregister(self.driver.owner.at_exit)
        for process in processes:
            process.leaving.set()  # first all: none is to mourn another
        for process in processes:
            process.close(_CLOSE_SECONDS)

    def _connect(self, where: str) -> Transport:
        """A connection to worker ``where``: the connector's end."""
        worker = self.workers.get(int(where))
        if worker is None:
            raise ConnectError(f"worker {where} has crashed", f"memory:{where}")
        ours, theirs = memory_pair(capacity_bytes=self._capacity_bytes)
        _as(worker, partial(worker.links.accept, theirs))
        return ours

    def _on_exit(self, pid: int, _peer: Peer) -> ExitReason:
        membership = self.driver.membership
        reason = ExitReason("crashed by the test")
        member = membership.get(pid)
        if member is not None and member.state is State.JOINED and membership.gone(pid, reason):
            self.driver.links.announce_left(pid, reason)
        return reason


def _as(process: Process, action: Callable[[], None]) -> None:
    """Do something on this thread as if it worked for ``process``."""
    contextvars.copy_context().run(process.in_context(action))
