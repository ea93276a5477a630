"""Large data that a function has captured: once in the memory of a node, for all workers of a map, a pool or a loop."""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.mappings import has_mapped, inode_of
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

N = 300_000
"""Of float64: 2.4 MB."""

Run = Callable[[Any, Any], Any]


@pytest.fixture
def table() -> Any:
    return np.arange(N, dtype=np.float64)


class Counting:
    """Counts how often it is pickled here."""

    def __init__(self) -> None:
        self.pickled = 0

    def __reduce__(self) -> Any:
        self.pickled += 1
        return Counting, ()


class Model:
    def __init__(self, weights: Any) -> None:
        self.layers = {"first": [weights]}

    def predict(self, i: int) -> float:
        return float(self.layers["first"][0][i])

    __call__ = predict


def look(table: Any, i: int) -> float:
    return float(table[i])


def forms(table: Any) -> dict[str, Callable[[int], float]]:
    def by_default(i: int, table: Any = table) -> float:
        return float(table[i])

    return {
        "closure": lambda i: float(table[i]),
        "partial": functools.partial(look, table),
        "method": Model(table).predict,
        "object": Model(table),
        "default": by_default,
        "of a function": lambda i: by_default(i),
    }


def in_auto_batches(f: Any, items: Any) -> Any:
    return hd.pmap(f, items, batch_size="auto")


def in_batches(f: Any, items: Any) -> Any:
    return hd.pmap(f, items, batch_size=3)


def by_imap(f: Any, items: Any) -> Any:
    return list(hd.imap(f, items))


def in_a_pool(f: Any, items: Any) -> Any:
    return hd.pmap(f, hd.WorkerPool(hd.workers()), items)


def in_a_caching_pool(f: Any, items: Any) -> Any:
    return hd.pmap(f, hd.CachingPool(hd.workers()), items)


def in_a_loop(f: Any, items: Any) -> Any:
    return hd.distributed(lambda i: [f(i)], items, reduce=lambda x, y: x + y)


def with_a_limit(f: Any, items: Any) -> Any:
    return hd.pmap(f, items, item_timeout=60)


WAYS: list[Run] = [
    hd.pmap, in_auto_batches, in_batches, by_imap, in_a_pool, in_a_caching_pool, in_a_loop, with_a_limit,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["closure", "partial", "method", "object", "default", "of a function"])
def test_results_are_right(cluster: list[int], table: Any, way: Run, form: str) -> None:
    assert way(forms(table)[form], range(20)) == list(range(20))


@pytest.mark.parametrize("way", [way for way in WAYS if way is not in_a_loop])
def test_a_map_pickles_it_once_and_a_node_has_it_once(cluster: list[int], table: Any, way: Run) -> None:
    counting = Counting()

    def f(i: int) -> tuple[str, int]:
        return inode_of(table), counting is None or hd.myid()

    seen = way(f, range(40))
    assert counting.pickled == 1
    assert len({inode for inode, _ in seen}) == 1
    assert {inode for inode, _ in seen} != {"0"}  # not memory of the process's own


def test_a_loop_pickles_it_once(cluster: list[int], table: Any) -> None:
    counting = Counting()

    def f(i: int) -> set[str]:
        return {inode_of(table), *([] if counting else [""])}

    seen = hd.distributed(f, range(40), reduce=lambda x, y: x | y)
    assert counting.pickled == 1
    assert len(seen) == 1
    assert seen != {"0"}


def test_what_a_worker_writes_is_its_own(cluster: list[int], table: Any) -> None:
    def f(i: int) -> tuple[bool, int, float]:
        table[7] += 1000 * hd.myid()
        return table.flags.writeable, hd.myid(), float(table[7])

    seen = hd.pmap(f, range(12))
    assert all(writable for writable, *_ in seen)
    assert {pid for _, pid, _ in seen} == set(cluster)
    for pid in cluster:
        values = sorted(value for _, there, value in seen if there == pid)
        assert values == [7 + 1000 * pid * (k + 1) for k in range(len(values))]
    assert table[7] == 7.0
    assert hd.pmap(lambda i: float(table[7]), range(12)) == [7.0] * 12  # another map begins anew


def test_a_read_only_array_is_writable_there(cluster: list[int], table: Any) -> None:
    table.flags.writeable = False
    assert all(hd.pmap(lambda i: table.flags.writeable, range(6)))


def test_a_change_is_seen_by_the_next_map(cluster: list[int], table: Any) -> None:
    f = forms(table)["closure"]
    for value in (1.0, 2.0):
        table[0] = value
        assert hd.pmap(f, [0] * 6) == [value] * 6
        assert in_a_loop(f, [0] * 6) == [value] * 6


def test_a_caching_pool_keeps_what_it_was(cluster: list[int], table: Any) -> None:
    pool, f = hd.CachingPool(cluster), forms(table)["closure"]
    assert hd.remotecall_fetch(f, pool, 0) == 0.0
    table[0] = 5.0
    assert [hd.remotecall_fetch(f, pool, 0) for _ in range(6)] == [0.0] * 6
    hd.clear(pool)
    assert [hd.remotecall_fetch(f, pool, 0) for _ in range(6)] == [5.0] * 6


def test_it_is_freed_when_the_map_has_ended(cluster: list[int], table: Any) -> None:
    inodes = set(hd.pmap(lambda i: inode_of(table), range(12)))
    inodes |= set(hd.distributed(lambda i: [inode_of(table)], range(12), reduce=lambda x, y: x + y))
    with pytest.raises(hd.RemoteException):
        hd.pmap(lambda i: 1 / int(table[0]), range(12))
    assert inodes != {"0"}
    for pid in [1, *cluster]:
        poll_for(lambda: not hd.remotecall_fetch(has_mapped, pid, *inodes), what="it is let go")  # noqa: B023


def test_a_caching_pool_frees_it_with_the_function(cluster: list[int], table: Any) -> None:
    pool = hd.CachingPool(cluster)
    f = lambda: inode_of(table)  # noqa: E731
    inodes = {hd.remotecall_fetch(f, pool) for _ in range(6)}
    assert len(inodes) == 1
    assert hd.remotecall_fetch(has_mapped, cluster[0], *inodes)
    del f
    gc.collect()
    hd.remotecall_fetch(int, pool)  # the pool tidies up with its next call
    for pid in [1, *cluster]:
        poll_for(lambda: not hd.remotecall_fetch(has_mapped, pid, *inodes), what="it is let go")  # noqa: B023


def test_references_beside_it(cluster: list[int], table: Any) -> None:
    future = hd.remotecall(int, cluster[0], 5)
    shared = hd.broadcast(table)

    def f(i: int) -> float:
        return float(table[i] + future.fetch() + shared.value[i])

    for way in WAYS:
        assert way(f, range(6)) == [5.0, 7.0, 9.0, 11.0, 13.0, 15.0]


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_pickled_beside_it_is_named(cluster: list[int], table: Any, way: Run) -> None:
    lock = threading.Lock()
    with pytest.raises(hd.SerializeError, match="lock"):
        way(lambda i: (table, lock), range(6))


def fail() -> None:
    raise ImportError("not there")


class Vanishing:
    def __reduce__(self) -> Any:
        return fail, ()


@pytest.mark.parametrize("way", [hd.pmap, in_auto_batches, in_a_caching_pool, in_a_loop])
def test_what_cannot_be_unpickled_beside_it(cluster: list[int], table: Any, way: Run) -> None:
    thing = Vanishing()
    with pytest.raises(hd.HybridDistError, match="not there"):
        way(lambda i: (table, thing), range(6))


def test_coroutines(cluster: list[int], table: Any) -> None:
    async def f(i: int) -> float:
        return float(table[i])

    assert hd.pmap(f, range(10)) == list(range(10))
    assert hd.distributed(f, range(10), reduce=lambda x, y: x + y) == 45


def test_the_caller_among_those_who_work(cluster: list[int], table: Any) -> None:
    written = []

    def f(i: int) -> float:
        if hd.myid() == 1:
            written.append(i)
        return float(table[i])

    assert hd.distributed(f, range(8), reduce=lambda x, y: x + y, procs=[1, cluster[0]]) == 28
    assert written == [0, 1, 2, 3]  # it is the function itself that ran here


def test_inside_of_a_map(cluster: list[int], table: Any) -> None:
    def inner(i: int) -> float:
        return float(table[i])

    assert hd.pmap(lambda k: sum(hd.pmap(inner, range(k))), range(5)) == [0, 0, 1, 3, 6]


def test_a_worker_that_dies_takes_nothing_along(transport: str, cluster: list[int], table: Any) -> None:
    if transport == "memory":
        pytest.skip("needs a process to kill")
    (victim,) = hd.addprocs(1, transport=transport)
    pool = hd.WorkerPool([victim, cluster[0]])

    def f(i: int) -> float:
        if hd.myid() == victim:
            os._exit(3)
        return float(table[i])

    results = hd.pmap(f, pool, range(20), on_error=lambda error: type(error))
    assert sorted(results.index(r) for r in results if r is hd.ProcessExitedException)
    assert all(r in (i, hd.ProcessExitedException) for i, r in enumerate(results))
    assert hd.pmap(lambda i: float(table[i]), range(6)) == list(range(6))
