"""`spawnat`, `spawn`, `fetchfrom`: the process first, or any worker in turn."""

from __future__ import annotations

import pytest

import hybriddist as hd

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


def test_any_takes_the_workers_in_turn_with_one_counter_for_all(cluster: list[int]) -> None:
    taken = []
    for _ in range(len(cluster)):
        taken += [hd.spawn(hd.myid).fetch(), hd.spawnat("any", hd.myid).fetch(), hd.fetchfrom("any", hd.myid)]
    start = cluster.index(taken[0])
    assert taken == [cluster[(start + step) % len(cluster)] for step in range(len(taken))]


def test_as_many_fetches_as_workers_reach_each_once(cluster: list[int]) -> None:
    assert sorted(hd.fetchfrom("any", hd.myid) for _ in cluster) == cluster


def test_a_pid_takes_that_process(cluster: list[int]) -> None:
    for pid in [1, *cluster]:
        assert hd.spawnat(pid, hd.myid).where == pid
        assert hd.spawnat(pid, hd.myid).fetch() == hd.fetchfrom(pid, hd.myid) == pid


def test_closures_capture_at_the_time_of_the_call(cluster: list[int]) -> None:
    futures = []
    for i in range(2 * len(cluster)):
        futures.append(hd.spawn(lambda: i))  # noqa: B023 - that is what is tested
    assert [future.fetch() for future in futures] == list(range(2 * len(cluster)))


def test_a_cancelled_call_is_a_failure_of_its_sync_block(cluster: list[int]) -> None:
    from concurrent.futures import CancelledError

    def wait_for(gate: hd.Future) -> None:
        gate.wait(10)

    gate = hd.Future()
    with pytest.raises(hd.CompositeException) as info, hd.sync():
        hd.spawnat(cluster[0], wait_for, gate).cancel()
    gate.put(None)
    assert [type(error) for error in info.value] == [CancelledError]
