"""pmap and imap with a worker pool: who works, who is put back, and what happens when nobody is left."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

BATCHES = pytest.mark.parametrize("batch_size", [1, 3, "auto"])


@pytest.fixture(scope="module")
def workers(transport: str, _driver: None) -> Iterator[list[int]]:
    """Four workers, none of which a test removes."""
    pids = hd.addprocs(4, transport=transport)
    hd.remotecall_all(who, None, procs=pids)  # all have this module now
    yield pids
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])


def who(_: Any) -> int:
    time.sleep(0.001)
    return hd.myid()


def free(pool: hd.AbstractWorkerPool) -> list[int]:
    """Those that can be taken now; they are put back."""
    taken = []
    while pool.isready() and len(taken) < len(pool):
        taken.append(pool.take(timeout=0))
    for pid in taken:
        pool.put(pid)
    return sorted(taken)


@BATCHES
def test_only_members_work_and_all_of_them_do(batch_size: Any, workers: list[int]) -> None:
    pool = hd.WorkerPool(workers[1:3])
    assert set(hd.pmap(who, pool, range(100), batch_size=batch_size)) == set(workers[1:3])
    assert free(pool) == workers[1:3]


def test_a_member_that_is_taken_is_left_alone(workers: list[int]) -> None:
    pool = hd.WorkerPool(workers[:2])
    mine = pool.take()
    assert set(hd.pmap(who, pool, range(50))) == set(workers[:2]) - {mine}
    pool.put(mine)
    assert free(pool) == workers[:2]


def test_it_takes_no_more_than_it_has_items_for(workers: list[int]) -> None:
    pool = hd.WorkerPool(workers)
    gate = hd.Future()
    caller = threading.Thread(target=hd.pmap, args=(lambda x: gate.wait(10), pool, [1, 2]))
    caller.start()
    poll_for(lambda: len(free(pool)) == 2)
    gate.put(None)
    caller.join(10)
    assert free(pool) == workers


def test_a_member_that_comes_free_joins_in(workers: list[int]) -> None:
    pool = hd.WorkerPool(workers[:2])
    other = pool.take()
    seen: set[int] = set()
    for pid in hd.imap(who, pool, itertools.count()):
        seen.add(pid)
        if len(seen) == 1 and other not in seen:
            pool.put(other)
        elif other in seen:
            break
    assert seen == set(workers[:2])
    assert free(pool) == workers[:2]


def test_several_maps_share_a_pool(workers: list[int]) -> None:
    pool = hd.WorkerPool(workers[:2])
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = hd.pmap(lambda x: (time.sleep(0.002), x * number)[1], pool, range(40))

    callers = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert results == {number: [x * number for x in range(40)] for number in range(4)}
    assert free(pool) == workers[:2]


def test_they_are_put_back_after_a_failure_and_an_early_end(workers: list[int]) -> None:
    pool = hd.WorkerPool(workers[:2])
    with pytest.raises(hd.RemoteException):
        hd.pmap(lambda x: 1 / x, pool, [1, 0, 2])
    assert free(pool) == workers[:2]
    next(hd.imap(abs, pool, itertools.count()))  # closed at once, when nobody has it any more
    assert free(pool) == workers[:2]


def test_a_proxy_means_the_same_members(workers: list[int]) -> None:
    pool = hd.WorkerPool(workers[1:3])

    def inner(pool: hd.WorkerPool) -> Any:
        return hd.pmap(who, pool, range(50))

    assert set(hd.remotecall_fetch(inner, workers[0], pool)) == set(workers[1:3])
    assert free(pool) == workers[1:3]


def test_a_pool_that_is_far_away_is_waited_for(workers: list[int]) -> None:
    """Its process takes longer to answer than a free worker is worth waiting for."""
    round_trip = 0.05

    class FarPool(hd.WorkerPool):
        def isready(self) -> bool:
            time.sleep(round_trip)
            return super().isready()

        def take(self, timeout: float | None = None) -> int:
            if timeout is not None and timeout < round_trip:
                time.sleep(timeout)
                raise TimeoutError
            time.sleep(round_trip)
            return super().take(timeout)

    def inner() -> Any:
        return hd.pmap(who, FarPool(workers[1:3]), range(50))

    assert hd.remotecall_fetch(inner, workers[0])[0] in workers[1:3]


def test_maps_inside_maps_on_a_small_pool_end(workers: list[int]) -> None:
    """The outer one has all members: the inner ones work where they are."""
    pool = hd.WorkerPool(workers[:2])

    def outer(x: int) -> Any:
        return sum(hd.pmap(lambda y: x * y, pool, range(10)))

    assert hd.pmap(outer, pool, range(6)) == [45 * x for x in range(6)]
    assert free(pool) == workers[:2]


def test_a_caching_pool_freezes_what_it_sends(workers: list[int]) -> None:
    data = [1]
    pool = hd.CachingPool(workers[:2])

    def f(x: int) -> int:
        return x + data[0]

    assert hd.pmap(f, pool, range(10)) == list(range(1, 11))
    data[0] = 100
    assert hd.pmap(f, pool, range(10)) == list(range(1, 11))
    assert hd.pmap(f, pool, range(10), batch_size="auto") == list(range(1, 11))
    hd.clear(pool)
    assert hd.pmap(f, pool, range(10)) == list(range(100, 110))


def test_a_pool_of_ones_own(workers: list[int]) -> None:
    class Stack(hd.AbstractWorkerPool):
        """The one that was put back last is taken first."""

        def __init__(self, pids: list[int]) -> None:
            self.free = list(pids)
            self.members = list(pids)

        def push(self, pid: int) -> Stack:
            self.members.append(pid)
            self.free.append(pid)
            return self

        def put(self, pid: int) -> int:
            self.free.append(pid)
            return pid

        def take(self, timeout: float | None = None) -> int:
            if not self.free:
                raise TimeoutError
            return self.free.pop()

        def __len__(self) -> int:
            return len(self.members)

        def isready(self) -> bool:
            return bool(self.free)

        def wait(self, timeout: float | None = None) -> None:
            poll_for(self.isready)

    pool = Stack(workers[:3])
    assert set(hd.pmap(who, pool, range(100))) == set(workers[:3])
    assert sorted(pool.free) == workers[:3]


def test_the_driver_as_a_member(workers: list[int]) -> None:
    pool = hd.WorkerPool([1, workers[0]])
    assert set(hd.pmap(who, pool, range(60))) == {1, workers[0]}
    assert free(pool) == [1, workers[0]]


def test_a_pool_alone_is_no_input(workers: list[int]) -> None:
    with pytest.raises(TypeError, match="at least one iterable"):
        hd.pmap(abs, hd.WorkerPool(workers))
