"""Calls of workers among each other: chains, circles, and both ends of a pair at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.testing.clusters import memory_cluster

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


def add_up(pids: list[int], sum_: int = 0) -> int:
    """One more with each process on the way."""
    return hd.remotecall_fetch(add_up, pids[0], pids[1:], sum_ + 1) if pids else sum_


def add_up_by_futures(pids: list[int], sum_: int = 0) -> int:
    return hd.remotecall(add_up_by_futures, pids[0], pids[1:], sum_ + 1).fetch() if pids else sum_


def call_all(pids: list[int]) -> list[int]:
    return [hd.remotecall_fetch(hd.myid, pid) for pid in pids]


def connections() -> dict[int, str]:
    """What this process is connected to."""
    from hybriddist.runtime.current import current

    return {pid: peer.transport.scheme for pid, peer in current().peers.items()}


@pytest.fixture
def fresh(cluster: list[int], transport: str) -> Iterator[list[int]]:
    """Four workers that have not met."""
    if transport == "memory":
        with memory_cluster(4) as inside:
            yield inside.pids
        return
    pids = hd.addprocs(4, transport=transport)
    yield pids
    hd.rmprocs(pids)


@pytest.mark.parametrize("chain", [add_up, add_up_by_futures])
def test_a_chain_of_closures(chain: Any, cluster: list[int]) -> None:
    a, b, c = cluster
    assert chain([a, b, c, a]) == 4
    call = hd.remotecall_fetch
    nested = call(lambda: 1 + call(lambda: 1 + call(lambda: 1 + call(lambda: 1, a), c), b), a)
    assert nested == 4


def test_a_function_that_came_from_the_driver_goes_on_to_another_worker(cluster: list[int]) -> None:
    def double(x: int) -> int:
        return 2 * x

    for pid in cluster[:2]:
        assert hd.remotecall_fetch(double, pid, 3) == 6
    assert hd.remotecall_fetch(lambda f: hd.remotecall_fetch(f, cluster[1], 4), cluster[0], double) == 8


def test_everybody_calls_everybody(cluster: list[int]) -> None:
    everybody = [1, *cluster]
    futures = [hd.remotecall(call_all, pid, everybody) for pid in everybody for _ in range(5)]
    assert [future.fetch() for future in futures] == [everybody] * 20


def test_a_worker_may_call_the_driver_while_the_driver_waits_for_it(cluster: list[int]) -> None:
    assert hd.remotecall_fetch(lambda: hd.remotecall_fetch(hd.myid, 1), cluster[0]) == 1
    assert add_up([cluster[0], 1, cluster[0], 1, cluster[1], 1]) == 6


def test_deep_ping_pong(cluster: list[int]) -> None:
    a, b, _ = cluster
    assert add_up([a, b] * 30) == 60


@pytest.mark.parametrize("chain", [add_up, add_up_by_futures])
def test_a_hundred_circles_at_once(chain: Any, cluster: list[int]) -> None:
    a, b, c = cluster
    circles = [[a, b, c, a], [b, c, a, b], [c, b, a, c]]
    futures = [hd.remotecall(chain, pids[0], pids[1:], 1) for _ in range(34) for pids in circles]
    assert [future.fetch(timeout=60) for future in futures] == [4] * 102


def test_arrays_between_workers(cluster: list[int]) -> None:
    a, b, _ = cluster

    def through(x: Any) -> Any:
        return hd.remotecall_fetch(lambda y: y + 1, b, x)

    array = np.arange(200_000.0)
    for _ in range(5):
        array = hd.remotecall_fetch(through, a, array)
    assert np.array_equal(array, np.arange(200_000.0) + 5)


@pytest.mark.parametrize("round_", range(3))
def test_first_calls_in_both_directions_at_once_make_one_connection(
    round_: int, fresh: list[int], transport: str
) -> None:
    """Of each pair both begin at the same moment, from several threads each; nothing is lost, one connection stays."""
    gate = hd.Future()

    def begin(others: list[int]) -> list[int]:
        gate.fetch()
        return call_all(others)

    pairs = [(pid, other) for pid in fresh for other in fresh if pid != other]
    futures = [hd.remotecall(begin, pid, [other]) for pid, other in pairs for _ in range(5)]
    assert not any(future.isready() for future in futures)
    gate.put(None)
    for (_, other), future in zip([pair for pair in pairs for _ in range(5)], futures, strict=True):
        assert future.fetch(timeout=30) == [other]
    for pid in fresh:
        expected = {other: transport for other in [1, *fresh] if other != pid}
        assert hd.remotecall_fetch(connections, pid) == expected


def test_threads_of_the_driver_call_through_one_worker(cluster: list[int]) -> None:
    results: list[int] = []

    def work() -> None:
        for _ in range(20):
            results.append(add_up([cluster[0], cluster[1], cluster[2]]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [3] * 160
