"""`CachingPool`: a function travels once to each worker, is what it was then, and is freed when nobody needs it."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


class Counting:
    """A callable that counts how often it is pickled, here, and carries a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickled += 1
        return Counting, (self.items,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return hd.myid(), list(self.items), args, kwargs

    def method(self, x: int = 0) -> Any:
        return x, list(self.items)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")

    def __call__(self) -> None: ...


def fail(_self: Any = None) -> None:
    raise ValueError("this was to be expected")


class Vanishing:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()

    def __call__(self) -> None: ...


def explode() -> None:
    raise ImportError("not there")


@pytest.fixture
def pool(cluster: list[int]) -> hd.CachingPool:
    return hd.CachingPool(cluster)


@pytest.fixture
def one(cluster: list[int]) -> hd.CachingPool:
    """Of one worker."""
    return hd.CachingPool(cluster[:1])


def nothing_is_held(pids: list[int]) -> bool:
    return all(hd.live_references(pid) == [] for pid in pids)


def by_call(f: Any, pool: Any, *args: Any, **kwargs: Any) -> Any:
    return hd.remotecall(f, pool, *args, **kwargs).fetch()


def by_wait(f: Any, pool: Any, *args: Any, **kwargs: Any) -> Any:
    return hd.remotecall_wait(f, pool, *args, **kwargs).fetch()


def test_it_is_a_pool(cluster: list[int], pool: hd.CachingPool) -> None:
    assert isinstance(pool, hd.WorkerPool)
    assert [pool.take() for _ in cluster] == cluster
    assert not pool.isready()
    assert pool.put(cluster[1]) == cluster[1]
    assert pool.take(timeout=1) == cluster[1]
    assert repr(pool) == f"CachingPool({cluster})"


@pytest.mark.parametrize("call", [by_call, hd.remotecall_fetch, by_wait])
def test_a_function_travels_once_to_each_worker(
    call: Callable[..., Any], cluster: list[int], pool: hd.CachingPool
) -> None:
    f = Counting([1])
    seen = [call(f, pool, number, key=number) for number in range(12)]
    assert {pid for pid, *_ in seen} == set(cluster)
    assert [rest for _, *rest in seen] == [[[1], (number,), {"key": number}] for number in range(12)]
    assert f.pickled == len(cluster)
    hd.remote_do(f, pool)
    assert f.pickled == len(cluster)


def test_what_a_function_has_captured_is_frozen_until_clear(one: hd.CachingPool) -> None:
    items = [1]
    table = np.ones(100_000)

    def look() -> tuple[list[int], float]:
        return items, float(table[0])

    assert hd.remotecall_fetch(look, one) == ([1], 1.0)
    items.append(2)
    table[0] = 5.0
    assert [hd.remotecall_fetch(look, one) for _ in range(3)] == [([1], 1.0)] * 3
    assert hd.clear(one) is one
    assert [hd.remotecall_fetch(look, one) for _ in range(3)] == [([1, 2], 5.0)] * 3


def test_functions_are_told_apart_by_identity(one: hd.CachingPool) -> None:
    functions = [lambda number=number: number for number in range(50)]
    for _ in range(2):
        assert [hd.remotecall_fetch(f, one) for f in functions] == list(range(50))
    # Each dies at once, and the next one is likely to have its address.
    assert [hd.remotecall_fetch(lambda number=number: number, one) for number in range(50)] == list(range(50))


def test_bound_methods_are_the_same_at_each_access(one: hd.CachingPool) -> None:
    first, second = Counting([1]), Counting([2])
    for number in range(4):
        assert hd.remotecall_fetch(first.method, one, number) == (number, [1])
        assert hd.remotecall_fetch(second.method, one, number) == (number, [2])
    assert (first.pickled, second.pickled) == (1, 1)
    items = [1, 1, 2]
    assert [hd.remotecall_fetch(items.count, one, 1) for _ in range(3)] == [2] * 3
    assert hd.remotecall_fetch(items.index, one, 2) == 2
    items.append(1)
    assert hd.remotecall_fetch(items.count, one, 1) == 2


@pytest.mark.parametrize("f", [abs, functools.partial(pow, 2), np.add, "abc".replace, dict, len])
def test_whatever_is_callable(f: Any, one: hd.CachingPool) -> None:
    args = {abs: (-1,), np.add: (1, 2), dict: ([(1, 2)],), len: ("abc",)}.get(f, ("a", "b"))
    if isinstance(f, functools.partial):
        args = (5,)
    for _ in range(4):
        assert hd.remotecall_fetch(f, one, *args) == f(*args)


def test_failures_put_the_worker_back(cluster: list[int], one: hd.CachingPool) -> None:
    for call in (by_call, hd.remotecall_fetch, by_wait):
        with pytest.raises(hd.SerializeError):
            call(Unpicklable(), one)
        for _ in range(3):
            with pytest.raises(hd.RemoteException) as caught:
                call(fail, one)
            assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(hd.RemoteException) as caught:
            call(Vanishing(), one)
        assert isinstance(caught.value.__cause__, hd.DeserializeError)
        assert one.take(timeout=10) == cluster[0]
        one.put(cluster[0])


def test_a_call_to_the_own_process_sends_nothing(cluster: list[int]) -> None:
    pool = hd.CachingPool([1])
    f = Counting([1])
    assert hd.remotecall_fetch(f, pool)[:2] == (1, [1])
    f.items.append(2)
    assert by_call(f, pool)[:2] == (1, [1, 2])
    assert f.pickled == 0


# ---- what is freed --------------------------------------------------------------------------------------------------


def test_clear_frees_the_copies(cluster: list[int], pool: hd.CachingPool) -> None:
    gc.collect()  # of tests before
    poll_for(lambda: nothing_is_held(cluster))
    f = Counting([1])
    for _ in cluster:
        hd.remotecall_fetch(f, pool)
    assert all(len(hd.live_references(pid)) == 1 for pid in cluster)
    hd.clear(pool)
    poll_for(lambda: nothing_is_held(cluster))
    for _ in cluster:
        hd.remotecall_fetch(f, pool)
    assert f.pickled == 2 * len(cluster)


def test_the_end_of_a_pool_frees_the_copies(cluster: list[int]) -> None:
    pool = hd.CachingPool(cluster)
    f = Counting([1])
    for _ in cluster:
        hd.remotecall_fetch(f, pool)
    del pool
    gc.collect()
    poll_for(lambda: nothing_is_held(cluster))


def test_the_end_of_a_function_frees_its_copies(cluster: list[int], one: hd.CachingPool) -> None:
    for number in range(20):
        f, thing = Counting([number]), Counting([])
        hd.remotecall_fetch(f, one)
        hd.remotecall_fetch(thing.method, one)
    del f, thing
    gc.collect()
    hd.remotecall_fetch(abs, one, 1)
    poll_for(lambda: len(hd.live_references(cluster[0])) == 1)


def test_clear_does_not_hurt_calls_that_are_under_way(cluster: list[int], one: hd.CachingPool) -> None:
    import time

    nap = functools.partial(time.sleep, 0.01)
    for _ in range(10):
        naps = []
        for _ in range(3):
            naps.append(hd.remotecall(nap, one))
            hd.clear(one)
            hd.remote_do(nap, one)
            hd.clear(one)
        assert [each.fetch() for each in naps] == [None] * 3
    poll_for(lambda: nothing_is_held(cluster))


def test_from_many_threads(cluster: list[int], pool: hd.CachingPool) -> None:
    f = Counting([1])
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        called = [threads.submit(hd.remotecall_fetch, f, pool, number) for number in range(100)]
        called += [threads.submit(hd.clear, pool)]
        called += [threads.submit(hd.remotecall_fetch, f, pool, number) for number in range(100)]
        values = [call.result() for call in called]
    assert [value[2] for value in values[:100]] == [(number,) for number in range(100)]
    hd.clear(pool)
    poll_for(lambda: nothing_is_held(cluster))


# ---- where it goes --------------------------------------------------------------------------------------------------


def test_it_cannot_be_pickled(cluster: list[int], pool: hd.CachingPool) -> None:
    import pickle

    with pytest.raises(TypeError, match="CachingPool objects cannot be pickled"):
        pickle.dumps(pool)
    with pytest.raises(hd.SerializeError, match="CachingPool objects cannot be pickled"):
        hd.remotecall_fetch(len, cluster[0], pool)


def test_it_can_be_the_default_pool(cluster: list[int], pool: hd.CachingPool) -> None:
    """Workers get a proxy of it that sends functions as usual."""
    before = hd.default_worker_pool()
    try:
        assert hd.default_worker_pool(pool) is pool
        f = Counting([1])
        assert {hd.remotecall_fetch(f, hd.default_worker_pool())[0] for _ in range(9)} == set(cluster)
        assert f.pickled == len(cluster)
        assert hd.remotecall_fetch(use_default, cluster[0]) == (set(cluster), hd.WorkerPool)
    finally:
        hd.default_worker_pool(before)


def use_default() -> tuple[set[int], type]:
    pool = hd.default_worker_pool()
    return {hd.remotecall_fetch(hd.myid, pool) for _ in range(9)}, type(pool)
