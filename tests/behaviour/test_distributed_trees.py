"""distributed: large partial results are combined where they are, and only the value comes to the caller."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.testing.clusters import memory_cluster
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

SMALL, LARGE = 10, 20_000


class Traveller:
    """A partial result that notes where it was computed, and where each journey took it."""

    def __init__(self, size: int, stops: list[str]) -> None:
        self.load = np.zeros(size)
        self.stops = stops

    def __add__(self, other: Traveller) -> Traveller:
        return Traveller(len(self.load), [*self.stops, *other.stops, f"added on {hd.myid()}"])

    def __reduce__(self) -> Any:
        return arrive, (self.load, self.stops)


def arrive(load: Any, stops: list[str]) -> Traveller:
    return Traveller(len(load), [*stops, f"came to {hd.myid()}"])


def travel(size: int, n: int, **keywords: Any) -> list[str]:
    value: Traveller = hd.distributed(
        lambda _: Traveller(size, [f"made on {hd.myid()}"]), range(n), reduce=operator.add, **keywords
    )
    return value.stops


def test_large_ones_meet_on_the_workers(cluster: list[int]) -> None:
    a, b, c = cluster
    stops = travel(LARGE, 3)
    assert stops == [
        *(f"made on {a}", f"made on {b}", f"came to {a}", f"added on {a}"),
        *(f"made on {c}", f"came to {a}", f"added on {a}", "came to 1"),
    ]


def test_only_the_value_comes_to_the_caller(cluster: list[int]) -> None:
    for schedule in ("static", "dynamic"):
        stops = travel(LARGE, 12, schedule=schedule)
        assert stops.count("came to 1") == 1
        assert "added on 1" not in stops
        assert len([stop for stop in stops if stop.startswith("made")]) == 12


def test_one_value_of_each_node_comes_to_the_caller(transport: str) -> None:
    if transport != "memory":
        pytest.skip("real workers of this machine are on one node")
    with memory_cluster(5) as inside:
        a, b, c, d, e = inside.pids
        for pid in (c, d):
            member = inside.driver.membership.get(pid)
            assert member is not None
            member.node = 99
        stops = travel(LARGE, 5)
    assert stops == [
        *(f"made on {a}", f"made on {b}", f"came to {a}", f"added on {a}", "came to 1"),
        *(f"made on {c}", f"made on {d}", f"came to {c}", f"added on {c}", "came to 1", "added on 1"),
        *(f"made on {e}", "came to 1", "added on 1"),
    ]


def test_small_ones_come_to_the_caller_at_once(cluster: list[int]) -> None:
    stops = travel(SMALL, 3)
    assert stops.count("came to 1") == 3
    assert stops[-1] == "added on 1"


def test_one_chunk_is_not_kept(cluster: list[int]) -> None:
    assert travel(LARGE, 1) == [f"made on {cluster[0]}", "came to 1"]


def test_nothing_stays_behind(cluster: list[int]) -> None:
    before = [hd.live_references(pid) for pid in cluster]
    travel(LARGE, 9, schedule="dynamic")
    poll_for(lambda: [hd.live_references(pid) for pid in cluster] == before)


def test_a_reducer_that_fails_when_large_ones_meet(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException, match="broadcast") as caught:
        hd.distributed(lambda i: np.zeros(LARGE + i), range(3), reduce=operator.add)
    assert caught.value.pid == cluster[0]
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_worker_that_dies_with_its_large_partial_result(cluster: list[int], transport: str) -> None:
    if transport == "memory":
        pytest.skip("its workers live in this process")

    def item(i: int) -> Any:
        return np.zeros(LARGE)

    def die_here(a: Any, b: Any) -> Any:
        import os

        os._exit(5)

    (victim,) = hd.addprocs(1, transport=transport)
    with pytest.raises(hd.ProcessExitedException, match="exited with code 5") as caught:
        hd.distributed(item, range(2), reduce=die_here, procs=[victim, cluster[0]])
    assert caught.value.pid == victim
    poll_for(lambda: hd.workers() == cluster)
    assert hd.distributed(item, range(3), reduce=operator.add).shape == (LARGE,)


def test_a_neighbour_that_dies_with_what_the_left_one_needs(cluster: list[int], transport: str) -> None:
    if transport == "memory":
        pytest.skip("its workers live in this process")
    (victim,) = hd.addprocs(1, transport=transport)

    def end_of_the_third(a: Any, b: Any) -> Any:
        """In the first round the third one's worker dies; in the second its value is wanted."""
        import os
        import time

        if victim in hd.procs():
            hd.remote_do(os._exit, victim, 6)
        end = time.monotonic() + 20
        while victim in hd.procs():
            assert time.monotonic() < end
            time.sleep(0.005)
        return a + b

    with pytest.raises(hd.ProcessExitedException, match="exited with code 6") as caught:
        hd.distributed(
            lambda _: np.zeros(LARGE), range(3), reduce=end_of_the_third, procs=[cluster[0], cluster[1], victim]
        )
    assert caught.value.pid == victim
    poll_for(lambda: hd.workers() == cluster)
    assert hd.distributed(lambda _: np.zeros(LARGE), range(3), reduce=operator.add).shape == (LARGE,)


def test_where_workers_are_not_connected_the_caller_combines(
    transport: str, cluster: list[int], run_python: Any
) -> None:
    if transport == "memory":
        pytest.skip("a cluster of its own, once for each real transport")
    done = run_python(
        """
        import operator, sys
        import numpy as np
        import hybriddist as hd

        hd.addprocs(3, topology="master_worker", transport=sys.argv[1])
        value = hd.distributed(lambda i: np.full(50_000, i), range(3), reduce=operator.add)
        print(value.shape, set(value.tolist()))
        """,
        transport,
    )
    assert done.stdout == "(50000,) {3}\n", done.stderr
