"""distributed: whatever the schedule, the value is that of the fold from the left; any indexable can be cut."""

from __future__ import annotations

import functools
import operator
from array import array
from collections import UserList, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hybriddist as hd

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "memory"], indirect=True, scope="module"),
]

P = 1_000_003


def text(x: int) -> str:
    return f"<{x}>"


def matrix(x: int) -> tuple[int, int, int, int]:
    return (x % P, 1, 1, x * x % P)


def times(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The product of two matrices of two rows, modulo a prime: associative, not commutative, and exact."""
    return (
        (a[0] * b[0] + a[1] * b[2]) % P,
        (a[0] * b[1] + a[1] * b[3]) % P,
        (a[2] * b[0] + a[3] * b[2]) % P,
        (a[2] * b[1] + a[3] * b[3]) % P,
    )


def large(x: int) -> Any:
    """A column of a size that stays on the worker, in which the item can be recognised."""
    return np.full((1, 12_000), x, dtype=np.int64)


def below(a: Any, b: Any) -> Any:
    return np.concatenate([a, b])


# ---- the fold from the left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("f", "reduce", "start"), [(text, operator.add, "init"), (matrix, times, (2, 3, 5, 7))])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_value_is_that_of_the_fold_from_the_left(
    cluster: list[int], f: Callable[[int], Any], reduce: Callable[[Any, Any], Any], start: Any, data: st.DataObject
) -> None:
    items = data.draw(st.lists(st.integers(0, 10**6), max_size=50))
    workers = data.draw(st.integers(1, 4))
    chunked, dynamic, with_init = (data.draw(st.booleans()) for _ in range(3))
    initial = [start] if with_init else []
    keywords: dict[str, Any] = {"init": start} if with_init else {}

    def fold_chunk(chunk: list[int]) -> Any:
        return functools.reduce(reduce, map(f, chunk))

    def run() -> Any:
        return hd.distributed(
            fold_chunk if chunked else f,
            items,
            reduce=reduce,
            chunked=chunked,
            schedule="dynamic" if dynamic else "static",
            procs=[*cluster, cluster[0]][:workers],
            **keywords,
        )

    if items or with_init:
        assert run() == functools.reduce(reduce, map(f, items), *initial)
    else:
        with pytest.raises(ValueError, match="no items and no init"):
            run()


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("places", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 0, 1], [0, "here", 1, 2]])
def test_large_partial_results_meet_in_order(n: int, schedule: Any, places: list[Any], cluster: list[int]) -> None:
    procs = [hd.myid() if place == "here" else cluster[place] for place in places]
    value = hd.distributed(large, range(n), reduce=below, procs=procs, schedule=schedule)
    assert value.shape == (n, 12_000)
    assert value[:, 0].tolist() == list(range(n))
    assert value[:, -1].tolist() == list(range(n))


@pytest.mark.parametrize("sizes", [[1, 9000], [9000, 1], [1, 9000, 1], [9000, 1, 1]])
def test_small_and_large_partial_results_together(sizes: list[int], cluster: list[int]) -> None:
    def words(i: int) -> list[str]:
        return [f"{i}/{j} is a text of twenty and more characters" for j in range(sizes[i])]

    value = hd.distributed(words, range(len(sizes)), reduce=operator.add)
    assert value == [word for i in range(len(sizes)) for word in words(i)]


def test_rounding_errors_are_the_same_each_time(cluster: list[int]) -> None:
    """Which worker has which chunk is left to chance; where chunks meet is not."""
    items = [1.0 / (i + 1) for i in range(500)]
    sums = {hd.distributed(abs, items, reduce=operator.add, schedule="dynamic") for _ in range(10)}
    assert len(sums) == 1


# ---- what can be cut ----------------------------------------------------------------------------------------------


class ByPosition:
    """Single positions only, and no end: an iteration by positions would never stop."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return operator.index(i) * 10


class Pairs(ByPosition):
    """A data set whose slices are no slices."""

    def __getitem__(self, i: Any) -> Any:
        return (i, i)


class Sliced(ByPosition):
    """Slices of its own kind, and no iterator."""

    def __getitem__(self, i: Any) -> Any:
        return Sliced(len(range(self.n)[i])) if isinstance(i, slice) else 7


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        (ByPosition(8), [0, 10, 20, 30, 40, 50, 60, 70]),
        (Pairs(6), [(i, i) for i in range(6)]),
        (Sliced(6), [7] * 6),
        (deque("abcdef"), list("abcdef")),
        (UserList("abcdef"), list("abcdef")),
        (array("d", [1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]),
        (b"abcd", list(b"abcd")),
        (np.arange(10)[::-3], [9, 6, 3, 0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_indexable(items: Any, wanted: list[Any], schedule: Any, cluster: list[int]) -> None:
    assert hd.distributed(lambda x: [x], items, reduce=operator.add, schedule=schedule) == wanted


def test_without_slices_a_chunk_is_a_list(cluster: list[int]) -> None:
    chunks = hd.distributed(lambda chunk: [chunk], ByPosition(5), reduce=operator.add, chunked=True)
    assert chunks == [[0, 10], [20, 30], [40]]


@pytest.mark.parametrize("kind", [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)])
def test_small_integer_types_sum_right(kind: str, cluster: list[int]) -> None:
    assert hd.distributed(abs, np.arange(1, 11, dtype=kind), reduce=operator.add) == 55


def test_what_a_process_gets_is_its_own_chunk_only(cluster: list[int]) -> None:
    class Item:
        def __reduce__(self) -> Any:
            pickled.append(self)
            return (int, ())

    pickled: list[Item] = []
    items = [Item() for _ in range(7)]
    assert hd.distributed(lambda x: [x], items, reduce=operator.add) == [0] * 7
    assert set(map(id, pickled)) == set(map(id, items))
    assert len(pickled) <= 2 * len(items)  # twice where pickling by value follows an attempt without


# ---- dynamic, pools -----------------------------------------------------------------------------------------------


def test_dynamic_gives_chunks_to_whoever_is_free(cluster: list[int]) -> None:
    """One worker is held up at its first chunk until the others have done all the rest."""
    gate = hd.Future()
    n = 40

    def item(i: int) -> list[int]:
        if i == 0:
            gate.wait(20)
        if i == n - 1:
            gate.put(None)
        return [hd.myid()]

    pids = hd.distributed(item, range(n), reduce=operator.add, schedule="dynamic")
    assert pids.count(cluster[0]) < n // 2
    assert set(pids[pids.count(cluster[0]) :]) <= set(cluster[1:])


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
@pytest.mark.parametrize("chunked", [False, True])
def test_without_reducer_every_item_is_visited_once(schedule: Any, chunked: bool, cluster: list[int]) -> None:
    seen = hd.RemoteChannel(lambda: hd.Channel(1000))

    def visit(x: Any) -> None:
        for item in x if chunked else [x]:
            seen.put(item)

    loop = hd.distributed(visit, range(50), chunked=chunked, schedule=schedule)
    assert loop.wait(20) is loop
    assert sorted(seen.take() for _ in range(50)) == list(range(50))
    assert seen.isempty()


class Pool:
    """The least that counts as a pool of workers."""

    def __init__(self, pids: list[int]) -> None:
        self.free = list(pids)
        self.total = len(pids)

    def __len__(self) -> int:
        return self.total

    def isready(self) -> bool:
        return bool(self.free)

    def take(self, timeout: float | None = None) -> int:
        return self.free.pop(0)

    def put(self, pid: int) -> None:
        self.free.append(pid)


def test_a_pool_lends_the_workers_that_are_free(cluster: list[int]) -> None:
    pool = Pool(cluster)
    busy = pool.take()

    def where(_: int) -> list[int]:
        return [hd.myid()]

    assert hd.distributed(where, range(4), reduce=operator.add, pool=pool) == [cluster[1]] * 2 + [cluster[2]] * 2
    assert hd.distributed(where, range(1), reduce=operator.add, pool=pool)[0] in cluster[1:]
    assert sorted(pool.free) == cluster[1:]
    pool.put(busy)
    assert len(hd.distributed(where, range(9), reduce=operator.add, pool=pool, schedule="dynamic")) == 9
    assert sorted(pool.free) == cluster
    assert hd.distributed(where, [], reduce=operator.add, pool=Pool([]), init=[]) == []


def test_a_pool_gets_its_workers_back_in_all_cases(cluster: list[int]) -> None:
    pool = Pool(cluster)
    with pytest.raises(hd.RemoteException, match="ZeroDivisionError"):
        hd.distributed(lambda x: 1 // x, range(3), reduce=operator.add, pool=pool)
    assert sorted(pool.free) == cluster
    returned = hd.Future()
    loop = hd.distributed(lambda _: None, range(3), pool=pool)
    loop.add_done_callback(lambda _: returned.put(sorted(pool.free)))
    loop.wait(10)
    assert returned.fetch(10) == cluster
    with pytest.raises(TypeError, match="not both"):
        hd.distributed(abs, [1], pool=pool, procs=cluster)
    with pytest.raises(ValueError, match="schedule"):
        hd.distributed(abs, [1], pool=pool, schedule="guided")  # type: ignore[call-overload]
    assert sorted(pool.free) == cluster


def test_a_worker_pool_lends_its_members_from_wherever_it_is(cluster: list[int]) -> None:
    pool = hd.WorkerPool(cluster)
    busy = pool.take()

    def loop(pool: Any) -> list[int]:
        pids: list[int] = hd.distributed(lambda _: [hd.myid()], range(6), reduce=operator.add, pool=pool)
        return pids

    free = [pid for pid in cluster if pid != busy]
    for where in (1, cluster[0]):  # there it is a proxy
        pids = hd.remotecall_fetch(loop, where, pool)
        assert len(pids) == 6
        assert set(pids) == set(free)
    pool.put(busy)
    assert sorted(pool.take(timeout=10) for _ in cluster) == cluster


def test_a_pool_whose_worker_somebody_else_takes_just_then(cluster: list[int]) -> None:
    """It said that one is free, and has none when it is asked for it: the loop goes on with what it has."""

    class Contested(Pool):
        def isready(self) -> bool:
            return True

        def take(self, timeout: float | None = None) -> int:
            if not self.free:
                assert timeout is not None, "this would wait for as long as somebody else has the worker"
                raise TimeoutError
            return self.free.pop()

    pool = Contested(cluster)
    taken = pool.take()
    assert hd.distributed(lambda _: [hd.myid()], range(4), reduce=operator.add, pool=pool).count(cluster[0]) == 2
    assert sorted([*pool.free, taken]) == cluster


def test_a_coroutine_function_is_awaited(cluster: list[int]) -> None:
    async def double(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return 2 * x

    assert hd.distributed(double, range(5), reduce=operator.add) == 20
