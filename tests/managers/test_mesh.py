"""Connecting new workers with all others, in a cluster inside this interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hybriddist.deadline import NEVER, Deadline
from hybriddist.errors import ConnectError, ProcessExitedException
from hybriddist.managers.mesh import connect_workers
from hybriddist.runtime.process import Process
from hybriddist.testing.clusters import MemoryCluster, memory_cluster
from hybriddist.transport import Transport
from tests.helpers.polling import poll_for


@pytest.fixture
def eager() -> Iterator[MemoryCluster]:
    """Four workers that have not met, and should have."""
    with memory_cluster(4) as cluster:
        cluster.driver.membership.lazy = False
        yield cluster


def met(cluster: MemoryCluster) -> dict[int, list[int]]:
    """The other workers that each worker is connected to."""
    return {pid: sorted(set(worker.peers) - {1}) for pid, worker in cluster.workers.items()}


def unreachable(worker: Process) -> None:
    """Nobody can connect to it any more."""

    def refuse(where: str) -> Transport:
        raise ConnectError(f"nobody answers at {where}")

    worker.paths.openers["memory"] = refuse


def test_every_pair_with_a_new_worker_in_it(eager: MemoryCluster) -> None:
    assert connect_workers(eager.driver, [2, 3], NEVER) == {}
    assert met(eager) == {2: [3], 3: [2], 4: [], 5: []}
    assert connect_workers(eager.driver, [4, 5], NEVER) == {}
    assert met(eager) == {2: [3, 4, 5], 3: [2, 4, 5], 4: [2, 3, 5], 5: [2, 3, 4]}
    before = {(pid, other): peer for pid, worker in eager.workers.items() for other, peer in worker.peers.items()}
    assert connect_workers(eager.driver, [2, 3, 4, 5], NEVER) == {}  # again: nothing is made twice
    for pid, worker in eager.workers.items():
        assert all(before[pid, other] is peer for other, peer in worker.peers.items())


def test_a_lazy_cluster_and_one_whose_topology_connects_nobody() -> None:
    with memory_cluster(3) as lazy:
        assert connect_workers(lazy.driver, lazy.pids, NEVER) == {}
        assert met(lazy) == {2: [], 3: [], 4: []}
    with memory_cluster(3, topology="master_worker") as apart:
        assert not apart.driver.membership.lazy
        assert connect_workers(apart.driver, apart.pids, NEVER) == {}
        assert met(apart) == {2: [], 3: [], 4: []}


def test_who_cannot_connect_is_told_with_the_reason(eager: MemoryCluster) -> None:
    unreachable(eager.workers[4])  # it is the one that dials
    missing = connect_workers(eager.driver, [4, 5], NEVER)
    assert {pid: sorted(reasons) for pid, reasons in missing.items()} == {4: [2, 3]}
    assert all(isinstance(reason, ConnectError) for reason in missing[4].values())
    assert "nobody answers" in str(missing[4][2])
    assert met(eager) == {2: [5], 3: [5], 4: [5], 5: [2, 3, 4]}


def test_an_interrupt_of_the_users_calls_is_no_reason(eager: MemoryCluster) -> None:
    worker = eager.workers[4]
    dial, interrupts = worker.paths.openers["memory"], iter(range(3))

    def dial_at_last(where: str) -> Transport:
        if next(interrupts, None) is not None:
            raise KeyboardInterrupt
        return dial(where)

    worker.paths.openers["memory"] = dial_at_last
    assert connect_workers(eager.driver, [4, 5], NEVER) == {}
    assert list(interrupts) == []
    assert met(eager) == {2: [4, 5], 3: [4, 5], 4: [2, 3, 5], 5: [2, 3, 4]}


def test_the_dead_are_missing_to_nobody(eager: MemoryCluster) -> None:
    eager.crash(2)
    poll_for(lambda: eager.driver.membership.why_gone(2) is not None)
    eager.crash(5)
    assert connect_workers(eager.driver, [3, 4, 5], NEVER) == {}
    assert met(eager) == {3: [4], 4: [3]}
    poll_for(lambda: eager.driver.membership.why_gone(5) is not None)
    with pytest.raises(ProcessExitedException):
        eager.driver.peer(5)


def test_what_is_late_goes_on_by_itself(eager: MemoryCluster) -> None:
    missing = connect_workers(eager.driver, [2, 3, 4, 5], Deadline(0))
    assert all(isinstance(reason, TimeoutError) for reasons in missing.values() for reason in reasons.values())
    poll_for(lambda: met(eager) == {2: [3, 4, 5], 3: [2, 4, 5], 4: [2, 3, 5], 5: [2, 3, 4]})
