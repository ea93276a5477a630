"""Calls that call: round in circles through all processes, many at once, and nobody waits in a circle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hybriddist as hd

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture(scope="module", params=["shm", "tcp"])
def pids(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    try:
        yield hd.addprocs(3, transport=request.param)
    finally:
        hd.shutdown()


def go_round(route: list[int], times: int) -> list[int]:
    """Call the next of the route, that the one after it, and so on; the pids in the order in which it went."""
    import hybriddist as hd

    if not times:
        return [hd.myid()]
    following = [*route[1:], route[0]]
    return [hd.myid(), *hd.remotecall_fetch(go_round, route[0], following, times - 1)]


def spread(pids: list[int], depth: int) -> int:
    """Each call makes one to everybody: how many there were."""
    import hybriddist as hd

    if not depth:
        return 1
    futures = [hd.remotecall(spread, pid, pids, depth - 1) for pid in pids]
    return 1 + sum(future.fetch() for future in futures)


def test_a_hundred_chains_from_each(pids: list[int]) -> None:
    """a calls b calls c calls a again: a hundred such chains from each of three at the same time."""
    a, b, c = pids
    routes = [([b, c, a], a), ([c, a, b], b), ([a, b, c], c)]
    chains = [(start, hd.remotecall(go_round, start, route, 6)) for _ in range(100) for route, start in routes]
    for start, future in chains:
        shifted = pids[pids.index(start) :] + pids[: pids.index(start)]
        assert future.fetch(timeout=30) == [*shifted, *shifted, start]


def test_through_the_driver(pids: list[int]) -> None:
    a, b, _ = pids
    chains = [hd.remotecall(go_round, a, [1, b, 1, a], 8) for _ in range(50)]
    for future in chains:
        assert future.fetch(timeout=30) == [a, 1, b, 1, a, 1, b, 1, a]


def test_deep(pids: list[int]) -> None:
    """Each level holds a thread of its process until the deepest has returned."""
    a, b, _ = pids
    assert hd.remotecall(go_round, a, [b, a], 100).fetch(timeout=30) == [a, b] * 50 + [a]


def test_to_itself(pids: list[int]) -> None:
    a = pids[0]
    assert hd.remotecall(go_round, a, [a], 20).fetch(timeout=30) == [a] * 21


def test_branching(pids: list[int]) -> None:
    assert hd.remotecall(spread, pids[0], pids, 4).fetch(timeout=30) == 1 + 3 + 9 + 27 + 81


def test_waiting_for_each_others_futures(pids: list[int]) -> None:
    """Each future's call fetches the one before it, which is on another process; the first is given last."""
    first = hd.Future()
    futures = [first]
    for turn in range(60):
        futures.append(hd.remotecall(lambda earlier: earlier.fetch() + 1, pids[turn % 3], futures[-1]))
    first.put(0)
    assert futures[-1].fetch(timeout=30) == 60
