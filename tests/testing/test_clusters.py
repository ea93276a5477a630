"""Clusters for the length of a block: all of it works, and all of it goes."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.testing.clusters import memory_cluster, throwaway_cluster
from tests.helpers.polling import poll_for


def test_a_memory_cluster_is_a_cluster() -> None:
    with memory_cluster(3) as cluster:
        assert cluster.pids == hd.workers() == [2, 3, 4]
        assert hd.myid() == 1
        assert [hd.remotecall_fetch(hd.myid, pid) for pid in hd.procs()] == hd.procs()
        assert [hd.remotecall_fetch(hd.workers, pid) for pid in hd.procs()] == [[2, 3, 4]] * 4
        assert {hd.path_to(pid) for pid in cluster.pids} == {"memory"}
        assert hd.remotecall_fetch(lambda: hd.path_to(3), 2) == "memory"
        assert hd.remotecall_fetch(os.getpid, 2) == os.getpid()
        assert hd.nodes() == [[1, 2, 3, 4]]


def test_arguments_are_copies_all_the_same() -> None:
    mine = np.zeros(100_000)
    with memory_cluster(1):
        theirs = hd.remotecall_fetch(lambda x: x, 2, mine)
        assert theirs is not mine
        theirs += 1
        assert mine.sum() == 0


def test_threads_of_the_test_work_for_the_driver() -> None:
    with memory_cluster(1):
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(hd.remotecall_fetch(hd.myid, 2)))
        thread.start()
        thread.join(10)
        assert seen == [2]


def test_two_clusters_in_one_interpreter_do_not_meet() -> None:
    with memory_cluster(2) as outer:
        future = hd.remotecall(abs, 2, -1)
        with memory_cluster(1) as inner:
            assert hd.workers() == inner.pids == [2]
            assert hd.live_references(2) == []
        assert hd.workers() == outer.pids == [2, 3]
        assert future.fetch() == 1


def test_a_crashed_worker_is_gone() -> None:
    with memory_cluster(3) as cluster:
        gate = threading.Event()
        running = hd.remotecall(gate.wait, 1)
        future = hd.remotecall(hd.fetch, 2, hd.Future())
        waiting = hd.remotecall(hd.fetch, 3, future)
        cluster.crash(2)
        with pytest.raises(hd.ProcessExitedException, match="crashed by the test"):
            future.fetch(timeout=10)
        with pytest.raises(hd.RemoteException) as caught:
            waiting.fetch(timeout=10)
        assert isinstance(caught.value.__cause__, hd.ProcessExitedException)
        assert hd.workers() == cluster.pids == [3, 4]
        poll_for(lambda: hd.remotecall_fetch(hd.workers, 3) == [3, 4])
        assert cluster.add() == 5
        assert hd.remotecall_fetch(lambda: hd.remotecall_fetch(hd.myid, 5), 3) == 5
        gate.set()
        assert running.fetch()


def test_the_topology_can_be_chosen() -> None:
    with memory_cluster(2, topology="master_worker"):
        with pytest.raises(hd.RemoteException) as caught:
            hd.remotecall_fetch(lambda: hd.remotecall_fetch(hd.myid, 3), 2)
        assert isinstance(caught.value.__cause__, hd.TopologyError)


def test_calls_under_way_do_not_hold_up_the_end() -> None:
    release = threading.Event()
    with memory_cluster(2):
        hd.remotecall(release.wait, 1)
        unset = hd.Future()
        futures = [hd.remotecall(hd.fetch, pid, unset) for pid in (2, 3)]
    release.set()
    for future in futures:
        with pytest.raises(hd.HybridDistError):
            future.fetch(timeout=5)


def test_a_failure_in_the_block_goes_through() -> None:
    with pytest.raises(ZeroDivisionError), memory_cluster(2):
        1 / 0  # noqa: B018
    assert hd.workers() == [1]


def test_a_throwaway_cluster_comes_and_goes() -> None:
    with throwaway_cluster(2, transport="tcp") as pids:
        assert hd.workers() == pids
        assert [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids
        assert hd.path_to(pids[0]) == "tcp"
        with throwaway_cluster(1) as more:
            assert hd.workers() == [*pids, *more]
        assert hd.workers() == pids
    assert hd.workers() == [1]
