"""distributed: how items are split, where parts run, in which order values meet, and what becomes of failures."""

from __future__ import annotations

import math
import operator
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


def square(x: int) -> int:
    return x * x


def bracket(a: str, b: str) -> str:
    """Neither associative nor commutative: shows who met whom."""
    return f"({a}{b})"


def placed(x: Any) -> list[tuple[int, Any]]:
    return [(hd.myid(), x)]


def even_fails(x: int) -> int:
    if x % 2 == 0:
        raise ValueError(f"{x} is even")
    return x


def cause(error: BaseException) -> tuple[type, Any]:
    assert error.__cause__ is not None
    return type(error.__cause__), error.__cause__.args[0]


# ---- both spellings -----------------------------------------------------------------------------------------------


def test_as_a_call(cluster: list[int]) -> None:
    assert hd.distributed(square, range(100), reduce=operator.add) == sum(x * x for x in range(100))


def test_as_a_decorator(cluster: list[int]) -> None:
    offset = 7

    @hd.distributed(range(100), reduce=operator.add)
    def total(i: int) -> int:
        return i + offset

    assert total == sum(range(100)) + 700


def test_as_a_decorator_without_reducer(cluster: list[int], tmp_path: Path) -> None:
    @hd.distributed(range(5))
    def loop(i: int) -> None:
        (tmp_path / str(i)).touch()

    assert loop.wait(10) is loop
    assert sorted(path.name for path in tmp_path.iterdir()) == list("01234")


# ---- the order of reduction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 50])
def test_associative_but_not_commutative(n: int, cluster: list[int]) -> None:
    assert hd.distributed(lambda i: [i], range(n), reduce=operator.add) == list(range(n))
    assert hd.distributed(str, range(n), reduce=operator.add) == "".join(map(str, range(n)))


def test_each_folds_its_part_from_the_left_and_the_caller_the_parts(cluster: list[int]) -> None:
    assert hd.distributed(lambda c: c, "abcdefgh", reduce=bracket) == "((((ab)c)((de)f))(gh))"
    assert hd.distributed(lambda c: c, "abcdefgh", reduce=bracket, init="_") == "(((_((ab)c))((de)f))(gh))"


def test_the_reducer_of_one_item_is_not_called(cluster: list[int]) -> None:
    def never(a: Any, b: Any) -> Any:
        raise AssertionError("called")

    assert hd.distributed(square, [5], reduce=never) == 25


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_init_is_folded_in_once_at_the_left(n: int, cluster: list[int]) -> None:
    assert hd.distributed(lambda i: [i], range(n), reduce=operator.add, init=["init"]) == ["init", *range(n)]


def test_none_is_an_init(cluster: list[int]) -> None:
    assert hd.distributed(square, [2], reduce=lambda a, b: (a, b), init=None) == (None, 4)


@pytest.mark.parametrize("items", [[], range(0), "", (), np.empty(0), np.empty((0, 3))], ids=repr)
@pytest.mark.parametrize("chunked", [False, True])
def test_no_items(items: Any, chunked: bool, cluster: list[int]) -> None:
    start: list[int] = []
    assert hd.distributed(square, items, reduce=operator.add, init=start, chunked=chunked) is start
    assert hd.distributed(square, items, reduce=operator.add, init=None, chunked=chunked) is None
    with pytest.raises(ValueError, match="no items and no init"):
        hd.distributed(square, items, reduce=operator.add, chunked=chunked)
    assert hd.distributed(square, items, chunked=chunked).wait(0).isready()


# ---- the split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [3, 2, 2]), (8, [3, 3, 2]), (300, [100, 100, 100])]
)
def test_equal_parts_longer_ones_first_in_order_of_the_workers(n: int, sizes: list[int], cluster: list[int]) -> None:
    """With fewer items than workers each item is a part."""
    result = hd.distributed(placed, range(n), reduce=operator.add)
    assert [x for _, x in result] == list(range(n))
    assert [pid for pid, _ in result] == [pid for pid, size in zip(cluster, sizes, strict=False) for _ in range(size)]


def test_procs_say_where(cluster: list[int]) -> None:
    procs = [cluster[2], 1, cluster[0], 1]
    assert hd.distributed(placed, range(4), reduce=operator.add, procs=procs) == list(zip(procs, range(4), strict=True))


def test_a_range_that_is_no_count(cluster: list[int]) -> None:
    for items in (range(-5, 5), range(10, 0, -3), range(2**70, 2**70 + 9)):
        assert hd.distributed(lambda i: [i], items, reduce=operator.add) == list(items)


@pytest.mark.parametrize(
    ("items", "parts"),
    [
        (range(1, 9), [range(1, 4), range(4, 7), range(7, 9)]),
        (range(9, 1, -1), [range(9, 6, -1), range(6, 3, -1), range(3, 1, -1)]),
        (list("abcd"), [["a", "b"], ["c"], ["d"]]),
        ((1, 2), [(1,), (2,)]),
        ("abcdef", ["ab", "cd", "ef"]),
    ],
    ids=repr,
)
def test_chunked_passes_parts(items: Any, parts: list[Any], cluster: list[int]) -> None:
    result = hd.distributed(placed, items, reduce=operator.add, chunked=True)
    assert result == list(zip(cluster, parts, strict=False))
    assert all(type(part) is type(items) for _, part in result)


def test_arrays_are_split_along_their_first_axis(cluster: list[int]) -> None:
    array = np.arange(14).reshape(7, 2)
    parts = hd.distributed(lambda part: [part], array, reduce=operator.add, chunked=True)
    assert [part.shape for part in parts] == [(3, 2), (2, 2), (2, 2)]
    assert np.array_equal(np.concatenate(parts), array)
    rows = hd.distributed(lambda row: [row], array, reduce=operator.add)
    assert [row.shape for row in rows] == [(2,)] * 7
    assert hd.distributed(np.sum, np.ones(1000), reduce=operator.add, chunked=True) == 1000.0


def test_a_part_in_this_process_is_a_view(cluster: list[int]) -> None:
    array = np.zeros(6)

    def fill(part: Any) -> None:
        part += 1

    hd.distributed(fill, array, chunked=True, procs=[1, 1]).wait(10)
    assert np.array_equal(array, np.ones(6))
    hd.distributed(fill, array, chunked=True, procs=cluster[:1]).wait(10)
    assert np.array_equal(array, np.ones(6))  # what is elsewhere is a copy


def test_globals_and_locals_of_the_caller_and_random_numbers(cluster: list[int]) -> None:
    a = 0.5
    assert hd.distributed(lambda _: [math.sin(a)], range(5), reduce=operator.add) == [math.sin(0.5)] * 5
    numbers = hd.distributed(lambda _: [random.SystemRandom().random()], range(6), reduce=operator.add)
    assert len(set(numbers)) == 6


def test_writes_to_what_a_function_refers_to_are_lost(cluster: list[int], transport: str) -> None:
    if transport == "memory":
        pytest.skip("its workers share this process's modules, not its closures")
    seen: list[int] = []
    hd.distributed(lambda i: seen.append(i), range(6)).wait(10)
    assert seen == []


# ---- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_of_several_parts_that_fail_the_first_is_raised(chunked: bool, cluster: list[int]) -> None:
    """Though it is the last to fail."""
    gate = hd.Future()

    def item(x: Any) -> int:
        x = x if isinstance(x, int) else x[0]
        if x == 1:
            gate.wait(10)
        elif x == 2:
            gate.put(None)
        if x:
            raise ValueError(x)
        return 0

    with pytest.raises(hd.RemoteException) as caught:
        hd.distributed(item, range(3), reduce=operator.add, chunked=chunked)
    assert cause(caught.value) == (ValueError, 1)
    assert caught.value.pid == cluster[1]


def test_a_reducer_that_fails_on_a_worker(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException, match="TypeError") as caught:
        hd.distributed(lambda x: x, [1, "a", 2, 3, 4, 5], reduce=operator.add)
    assert caught.value.pid == cluster[0]
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_reducer_that_fails_at_the_caller(cluster: list[int]) -> None:
    """It is no remote failure: the exception itself."""
    with pytest.raises(TypeError):
        hd.distributed(lambda x: x, [1, "a", 2], reduce=operator.add)


def test_what_cannot_be_pickled(cluster: list[int]) -> None:
    lock = threading.Lock()
    with pytest.raises(hd.SerializeError, match="lock"):
        hd.distributed(square, [1, lock, 2], reduce=operator.add)
    with pytest.raises(hd.SerializeError, match="lock"):
        hd.distributed(lambda x: lock, [1], reduce=operator.add)
    with pytest.raises(hd.RemoteException, match="lock"):
        hd.distributed(lambda x: threading.Lock(), [1], reduce=operator.add)
    assert hd.distributed(square, [2], reduce=operator.add) == 4


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda f: hd.distributed()),  # type: ignore[call-overload]
        (TypeError, lambda f: hd.distributed(f)),
        (TypeError, lambda f: hd.distributed(f, [1], [2])),  # type: ignore[call-overload]
        (TypeError, lambda f: hd.distributed(5, [1])),  # type: ignore[call-overload]
        (TypeError, lambda f: hd.distributed([1])(5)),  # type: ignore[arg-type]
        (TypeError, lambda f: hd.distributed(f, 5)),
        (TypeError, lambda f: hd.distributed(f, iter([1, 2]))),
        (TypeError, lambda f: hd.distributed(f, {1, 2})),
        (TypeError, lambda f: hd.distributed(f, {1: 2})),
        (TypeError, lambda f: hd.distributed(f, np.array(1))),
        (TypeError, lambda f: hd.distributed(f, [1], reduce=5)),  # type: ignore[call-overload]
        (TypeError, lambda f: hd.distributed(f, [1], init=3)),  # type: ignore[call-overload]
        (TypeError, lambda f: hd.distributed(f, [1], procs=1)),  # type: ignore[call-overload]
        (TypeError, lambda f: hd.distributed(f, [1, 2], procs=[1, "2"])),  # type: ignore[list-item]
        (ValueError, lambda f: hd.distributed(f, [1], procs=[])),
        (hd.NoSuchProcessError, lambda f: hd.distributed(f, [1, 2], procs=[hd.workers()[0], 999_999])),
        (hd.NoSuchProcessError, lambda f: hd.distributed(f, [1], procs=[hd.workers()[0], 999_999])),
    ],
)
def test_bad_arguments_are_told_before_anything_runs(
    error: type[Exception], call: Callable[[Any], Any], cluster: list[int], tmp_path: Path
) -> None:
    def touch(_: Any) -> None:
        (tmp_path / "ran").touch()

    with pytest.raises(error):
        call(touch)
    hd.distributed(abs, range(3)).wait(10)  # whatever had been sent before has run by now
    assert list(tmp_path.iterdir()) == []


# ---- without a reducer --------------------------------------------------------------------------------------------


def test_it_returns_at_once_and_can_be_waited_for(cluster: list[int]) -> None:
    gate = hd.Future()
    loop = hd.distributed(lambda _: gate.wait(10), range(3))
    assert not loop.isready()
    with pytest.raises(TimeoutError):
        loop.wait(0)
    gate.put(None)
    assert loop.wait(timeout=10) is loop
    assert loop.isready()


@pytest.mark.parametrize("chunked", [False, True])
def test_every_item_is_visited_once(chunked: bool, cluster: list[int], tmp_path: Path) -> None:
    def visit(x: Any) -> list[Any]:
        for i in x if chunked else [x]:
            with (tmp_path / str(i)).open("a") as file:
                file.write(f"{hd.myid()} ")
        return [threading.Lock()]  # nobody asked for a value: it does not travel

    hd.distributed(visit, range(8), chunked=chunked).wait(10)
    pids = [(tmp_path / str(i)).read_text().split() for i in range(8)]
    assert pids == [[str(cluster[part])] for part in (0, 0, 0, 1, 1, 1, 2, 2)]


def test_failures_are_raised_together_by_each_wait(cluster: list[int]) -> None:
    loop = hd.distributed(even_fails, [0, 1, 2])
    for _ in range(2):
        with pytest.raises(hd.CompositeException) as caught:
            loop.wait(10)
        assert [cause(error) for error in caught.value] == [(ValueError, "0 is even"), (ValueError, "2 is even")]
    assert loop.isready()


def test_sync_waits_for_it(cluster: list[int]) -> None:
    gate = hd.Future()
    opener = threading.Timer(0.05, gate.put, [None])
    with hd.sync():
        loop = hd.distributed(lambda _: gate.wait(10), range(3))
        opener.start()
    assert loop.isready()
    opener.join(10)


def test_sync_raises_its_failures(cluster: list[int]) -> None:
    with pytest.raises(hd.CompositeException) as caught, hd.sync():
        hd.distributed(even_fails, [1, 2, 3])
    assert [cause(error) for error in caught.value] == [(ValueError, "2 is even")]


# ---- from elsewhere, and deaths -----------------------------------------------------------------------------------


def test_from_a_worker(cluster: list[int]) -> None:
    def call() -> Any:
        return hd.distributed(placed, range(3), reduce=operator.add)

    assert hd.remotecall(call, cluster[1]).fetch(10) == list(zip(cluster, range(3), strict=True))


def test_nested(cluster: list[int]) -> None:
    def call(n: int) -> Any:
        return hd.distributed(square, range(n), reduce=operator.add, init=0)

    assert hd.distributed(call, range(8), reduce=operator.add) == sum(x * x for n in range(8) for x in range(n))


def test_a_worker_that_dies(cluster: list[int], transport: str) -> None:
    """Its part is lost; nobody else does it."""
    if transport == "memory":
        pytest.skip("its workers live in this process")

    def item(x: int) -> int:
        if hd.myid() not in cluster:
            os._exit(7)
        return x

    (victim,) = hd.addprocs(1, transport=transport)
    with pytest.raises(hd.ProcessExitedException, match="it exited with code 7") as caught:
        hd.distributed(item, range(8), reduce=operator.add)
    assert caught.value.pid == victim
    poll_for(lambda: hd.workers() == cluster)
    (victim,) = hd.addprocs(1, transport=transport)
    with pytest.raises(hd.CompositeException) as group:
        hd.distributed(item, range(8)).wait(10)
    assert [(type(error), error.pid) for error in group.value] == [(hd.ProcessExitedException, victim)]
    assert "it exited with code 7" in str(group.value)
    poll_for(lambda: hd.workers() == cluster)
