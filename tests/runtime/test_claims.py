"""Claims reach their owner by whatever path there is, and before what depends on them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import hybriddist as hd
from hybriddist.testing.clusters import MemoryCluster, memory_cluster
from tests.helpers.polling import poll_for


@pytest.fixture(params=["all_to_all", "master_worker"])
def inside(request: pytest.FixtureRequest) -> Iterator[MemoryCluster]:
    with memory_cluster(3, topology=request.param) as cluster:
        yield cluster


def held(cluster: MemoryCluster) -> dict[int, list[hd.RRID]]:
    gc.collect()
    return {pid: rrids for pid in [1, *cluster.pids] if (rrids := hd.live_references(pid))}


def hand_on(f: hd.Future, pids: list[int]) -> bool:
    """Give the reference away, and forget it."""
    return hd.remotecall_fetch(hand_on, pids[0], f, pids[1:]) if pids else isinstance(f, hd.Future)


def test_a_holder_without_a_connection_to_the_owner(inside: MemoryCluster) -> None:
    """It has to connect to drop the reference; or, where it may not, to have the driver tell."""
    a, b, _ = inside.pids
    future = hd.remotecall(abs, a, -1)
    rrid = hd.remoteref_id(future)
    assert hd.remotecall_fetch(hand_on, b, future, [])
    del future
    poll_for(lambda: held(inside) == {})
    assert rrid.whence == 1


def test_references_are_handed_on_through_the_driver(inside: MemoryCluster) -> None:
    """Worker to driver to worker: each of them gives and drops claims on what a third one owns."""
    a, b, c = inside.pids
    futures = [hd.remotecall(abs, a, -i) for i in range(20)]
    assert all(hd.remotecall_fetch(hand_on, b, future, [1, c, 1, b, 1]) for future in futures)
    assert [future.fetch() for future in futures] == list(range(20))
    del futures
    poll_for(lambda: held(inside) == {})


def test_a_worker_that_may_not_fetch_is_told_so(inside: MemoryCluster) -> None:
    a, b, _ = inside.pids
    future = hd.remotecall(abs, a, -1)
    if inside.driver.membership.may_connect(a, b):
        assert hd.remotecall_fetch(hd.fetch, b, future) == 1
    else:
        with pytest.raises(hd.RemoteException) as caught:
            hd.remotecall_fetch(hd.fetch, b, future)
        assert isinstance(caught.value.__cause__, hd.TopologyError)
    assert future.fetch() == 1
    poll_for(lambda: held(inside) == {})


def test_the_owner_crashes_while_others_hold_references(inside: MemoryCluster) -> None:
    a, b, _ = inside.pids
    future = hd.remotecall_wait(abs, a, -1)
    assert hd.remotecall_fetch(hand_on, b, future, [1, b])
    inside.crash(a)
    with pytest.raises(hd.ProcessExitedException):
        future.fetch()
    assert hd.remotecall_fetch(abs, b, -1) == 1
    assert held(inside) == {}


def test_a_holder_crashes(inside: MemoryCluster) -> None:
    a, b, _ = inside.pids
    kept: list[hd.Future] = []
    future = hd.remotecall_wait(abs, a, -1)
    hd.remotecall_fetch(lambda f: kept.append(f), b, future)
    rrid = hd.remoteref_id(future)
    del future
    gc.collect()
    inside.crash(b)
    poll_for(lambda: rrid not in hd.live_references(a))
