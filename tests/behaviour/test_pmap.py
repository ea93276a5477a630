"""pmap: what goes in and what comes out, where it runs, who may call it, and what it shows."""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.deadline import Deadline
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from hybriddist.runtime.waiting import wait_for_any
from tests.helpers.names import name_of
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


def square(x: int) -> int:
    return x * x


def later_first(gates: list[hd.Future], x: int) -> int:
    """Item x ends after item x + 1."""
    if x + 1 < len(gates):
        gates[x + 1].wait(10)
    gates[x].put(None)
    return x


def write(log: Path, x: Any) -> Any:
    with log.open("a") as file:
        file.write(f"{x}\n")
    return x


def where_and_who(x: Any) -> tuple[int, int]:
    return hd.myid(), threading.get_ident()


def channel() -> hd.RemoteChannel:
    return hd.RemoteChannel(partial(hd.Channel, 100))


def meet(here: hd.RemoteChannel, go: hd.Future, x: int) -> int:
    """Say who is here, and stay until told to go."""
    here.put(hd.myid())
    go.wait(10)
    return hd.myid()


# ---- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000, "auto"])
@pytest.mark.parametrize("distributed", [True, False])
def test_the_order_is_that_of_the_input(batch_size: Any, distributed: bool, cluster: list[int]) -> None:
    result = hd.pmap(square, range(200), batch_size=batch_size, distributed=distributed)
    assert type(result) is list
    assert result == [x * x for x in range(200)]


def test_the_order_does_not_depend_on_who_ends_first(cluster: list[int]) -> None:
    gates = [hd.Future() for _ in cluster]
    assert hd.pmap(partial(later_first, gates), range(3)) == [0, 1, 2]


def test_several_iterables_are_taken_elementwise(cluster: list[int]) -> None:
    assert hd.pmap(operator.add, [1, 2, 3], (10, 20, 30)) == [11, 22, 33]
    assert hd.pmap(lambda a, b, c: (a, b, c), "ab", range(2), iter([None, 5])) == [("a", 0, None), ("b", 1, 5)]


def test_the_shortest_iterable_wins(cluster: list[int]) -> None:
    endless = iter(int, 1)
    assert hd.pmap(operator.add, [1, 2, 3], [10, 20]) == [11, 22]
    assert hd.pmap(operator.add, [1, 2, 3], endless) == [1, 2, 3]


@pytest.mark.parametrize("empty", [[], (), "", iter([]), {}, range(0), set()], ids=name_of)
@pytest.mark.parametrize("distributed", [True, False])
def test_no_items_give_no_results(empty: Any, distributed: bool, cluster: list[int]) -> None:
    assert hd.pmap(square, empty, distributed=distributed) == []


def test_any_iterable(cluster: list[int]) -> None:
    assert hd.pmap(str.upper, "abc") == ["A", "B", "C"]
    assert hd.pmap(len, {"a": 1, "bc": 2}) == [1, 2]
    assert sorted(hd.pmap(square, {1, 2, 3})) == [1, 4, 9]
    assert hd.pmap(square, (x for x in range(3))) == [0, 1, 4]


def test_none_and_exceptions_are_values(cluster: list[int]) -> None:
    none, error = hd.pmap(lambda x: x, [None, ValueError("a value")])
    assert none is None
    assert (type(error), error.args) == (ValueError, ("a value",))


@pytest.mark.parametrize("distributed", [True, False])
def test_coroutine_functions(distributed: bool, cluster: list[int]) -> None:
    async def f(x: int) -> int:
        return -x

    assert hd.pmap(f, [1, 2, 3], distributed=distributed) == [-1, -2, -3]


def test_large_items(cluster: list[int]) -> None:
    arrays = [np.full(100_000, i, dtype=float) for i in range(6)]
    back = hd.pmap(lambda a: a + 1, arrays)
    assert [float(a[0]) for a in back] == [1, 2, 3, 4, 5, 6]
    assert all(len(a) == 100_000 and (a == a[0]).all() for a in back)


# ---- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (3, 1, 2), (0, 4)])
def test_an_array_keeps_its_shape(shape: tuple[int, ...], cluster: list[int]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape)
    result = hd.pmap(square, array)
    assert isinstance(result, np.ndarray)
    assert result.shape == shape
    assert np.array_equal(result, array * array)


def test_an_array_that_is_not_contiguous_keeps_its_order(cluster: list[int]) -> None:
    array = np.arange(12).reshape(3, 4).T[::2]
    assert np.array_equal(hd.pmap(square, array), array**2)


def test_an_array_of_results_that_are_no_numbers(cluster: list[int]) -> None:
    result = hd.pmap(lambda x: [x, x], np.arange(4).reshape(2, 2))
    assert result.shape == (2, 2)
    assert result.dtype == object
    assert result[1, 0] == [2, 2]


def test_whole_numbers_are_not_rounded(cluster: list[int]) -> None:
    """No whole type of numpy's holds them together."""
    assert hd.pmap(int, np.array([2**63, 0], dtype=np.uint64)).tolist() == [2**63, 0]
    assert hd.pmap(lambda x: 2**63 if x else -1, np.arange(2)).tolist() == [-1, 2**63]
    assert hd.pmap(int, np.empty(0)).dtype == np.float64


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_an_array_of_its_elements(cluster: list[int]) -> None:
    assert hd.pmap(square, np.matrix([[1, 2], [3, 4]])).tolist() == [[1, 4], [9, 16]]


def test_arrays_together(cluster: list[int]) -> None:
    one, two = np.arange(4).reshape(2, 2), np.ones((2, 2), dtype=int)
    assert np.array_equal(hd.pmap(operator.add, one, two), one + two)
    assert hd.pmap(operator.add, one, [1, 2, 3]) == [1, 3, 5]  # with a list it is a list
    with pytest.raises(ValueError, match="different shapes"):
        hd.pmap(operator.add, one, np.ones(4))


# ---- reading the input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distributed", [True, False])
def test_the_input_is_read_on_the_callers_thread(distributed: bool, cluster: list[int]) -> None:
    readers = set()

    def items() -> Iterator[int]:
        for i in range(20):
            readers.add((hd.myid(), threading.get_ident()))
            yield i

    assert hd.pmap(square, items(), distributed=distributed) == [i * i for i in range(20)]
    assert readers == {(1, threading.get_ident())}


def begin_together(here: hd.RemoteChannel, go: hd.Future, together: int) -> None:
    """On a thread: let the items go when so many have begun."""

    def look() -> None:
        for _ in range(together):
            here.take(timeout=20)
        go.put(None)

    threading.Thread(target=look).start()


@pytest.mark.parametrize("busy", [False, True])
def test_items_of_a_batch_that_wait_for_each_other_overlap(busy: bool, cluster: list[int]) -> None:
    """All of them; also while a call holds the main threads, which would begin the batches otherwise."""
    here, go, end = channel(), hd.Future(), hd.Future()
    holders = [hd.remotecall(hd.fetch, pid, end) for pid in cluster * busy]
    begin_together(here, go, 24)
    assert set(hd.pmap(partial(meet, here, go), range(24), batch_size=8)) == set(cluster)
    end.put(None)
    for holder in holders:
        holder.wait(timeout=20)


BARRIER = threading.Barrier(8)


def pass_barrier(x: int) -> int:
    """Blocks without the library's knowing."""
    BARRIER.wait(20)
    return x


def test_items_of_a_batch_that_block_overlap(cluster: list[int]) -> None:
    assert hd.pmap(pass_barrier, range(24), batch_size=8) == list(range(24))


def test_one_that_blocks_does_not_hold_up_the_rest_of_its_batch(cluster: list[int], tmp_path: Path) -> None:
    log = tmp_path / "log"
    gate = hd.Future()

    def item(x: int) -> int:
        write(log, x)
        if x == 150:
            gate.put(None)
        elif x == 50:
            gate.wait(20)
        return x

    assert hd.pmap(item, range(200), batch_size=200) == list(range(200))
    assert sorted(int(line) for line in log.read_text().splitlines()) == list(range(200))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_input_is_read_only_as_workers_get_free(batch_size: Any, cluster: list[int]) -> None:
    """Whoever computes holds an item, or a batch; the rest has not been looked at."""
    here = channel()
    go = hd.Future()
    read = []
    result: list[int] = []

    def items() -> Iterator[int]:
        for i in range(12):
            read.append(i)
            yield i

    caller = threading.Thread(
        target=lambda: result.extend(hd.pmap(partial(meet, here, go), items(), batch_size=batch_size))
    )
    caller.start()
    try:
        assert {here.take(timeout=10) for _ in range(3)} <= set(cluster)
        assert len(read) <= 3 * batch_size
    finally:
        go.put(None)
        caller.join(20)
    assert len(read) == len(result) == 12
    assert set(result) <= set(cluster)


# ---- where it runs ------------------------------------------------------------------------------------------------


def test_all_workers_take_part_and_the_driver_does_not(cluster: list[int]) -> None:
    here = channel()
    go = hd.Future()
    result: list[int] = []
    caller = threading.Thread(target=lambda: result.extend(hd.pmap(partial(meet, here, go), range(3))))
    caller.start()
    try:
        assert sorted(here.take(timeout=10) for _ in range(3)) == cluster
    finally:
        go.put(None)
        caller.join(20)
    assert sorted(result) == cluster


def test_a_slow_item_holds_back_no_other(cluster: list[int]) -> None:
    """One worker is at item 0 until all others, many more than there are workers, are done."""
    gate = hd.Future()
    done = channel()

    def item(x: int) -> int:
        if x:
            done.put(x)
        else:
            gate.wait(10)
        return x

    result: list[int] = []
    caller = threading.Thread(target=lambda: result.extend(hd.pmap(item, range(30))))
    caller.start()
    try:
        assert sorted(done.take(timeout=10) for _ in range(29)) == list(range(1, 30))
    finally:
        gate.put(None)
        caller.join(20)
    assert result == list(range(30))


def test_not_distributed_runs_here_on_threads_that_overlap(cluster: list[int]) -> None:
    barrier = threading.Barrier(3)

    def item(x: int) -> tuple[int, int]:
        barrier.wait(10)
        return where_and_who(x)

    result = hd.pmap(item, range(3), distributed=False)
    assert {pid for pid, _ in result} == {1}
    assert len({thread for _, thread in result}) == 3


def test_not_distributed_needs_no_pickling(cluster: list[int]) -> None:
    lock = threading.Lock()
    assert hd.pmap(lambda x: x, [lock], distributed=False)[0] is lock


# ---- from elsewhere -----------------------------------------------------------------------------------------------


def inner(n: int) -> list[tuple[int, int]]:
    return hd.pmap(lambda x: (x, hd.myid()), range(n))  # type: ignore[no-any-return]


def inner_on_all(here: hd.RemoteChannel, go: hd.Future) -> list[int]:
    return hd.pmap(partial(meet, here, go), range(3))  # type: ignore[no-any-return]


def test_from_a_worker_it_uses_all_workers(cluster: list[int]) -> None:
    here = channel()
    go = hd.Future()
    future = hd.remotecall(inner_on_all, cluster[0], here, go)
    try:
        assert sorted(here.take(timeout=10) for _ in range(3)) == cluster
    finally:
        go.put(None)
    assert sorted(future.fetch(10)) == cluster


def test_from_a_worker_many_items(cluster: list[int]) -> None:
    for pid in cluster:
        assert [x for x, _ in hd.remotecall(inner, pid, 200).fetch(20)] == list(range(200))


def test_from_a_worker_errors_are_as_from_the_driver(cluster: list[int]) -> None:
    def caller() -> tuple[int, str]:
        try:
            hd.pmap(lambda x: 1 // (x - 5), range(6))
        except hd.RemoteException as error:
            return error.index, type(error.captured.ex).__name__  # type: ignore[attr-defined]
        return -1, ""

    assert hd.remotecall(caller, cluster[1]).fetch(10) == (5, "ZeroDivisionError")


def test_from_a_worker_without_distribution(cluster: list[int]) -> None:
    def caller() -> set[int]:
        return {pid for pid, _ in hd.pmap(where_and_who, range(9), distributed=False)}

    assert hd.remotecall(caller, cluster[1]).fetch(10) == {cluster[1]}


def test_nested(cluster: list[int]) -> None:
    """More callers than workers: each waits on a worker for items that need a worker."""
    result: list[Any] = []
    caller = threading.Thread(target=lambda: result.extend(hd.pmap(inner, [5] * 8)))
    caller.start()
    caller.join(30)
    assert [[x for x, _ in part] for part in result] == [list(range(5))] * 8


def test_what_another_thread_receives_wakes_whoever_waits_for_several(cluster: list[int]) -> None:
    """As a map does. One of the connections is in other hands, and it is there that the awaited comes."""
    process = current()
    first, second = (process.peers[pid] for pid in cluster[:2])
    news = Completion()
    woken: list[bool] = []
    waiting = threading.Thread(
        target=lambda: woken.append(wait_for_any([first, second], news, process.spin_policy, Deadline(20)))
    )
    with first.recv_lock:
        waiting.start()
        poll_for(lambda: second.recv_lock.locked())
        news.complete(0, None)
        waiting.join(5)
    assert woken == [True]


def test_from_several_threads_at_once(cluster: list[int]) -> None:
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = hd.pmap(lambda x: x + number, range(100))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: list(range(number, number + 100)) for number in range(5)}


# ---- progress -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distributed", [True, False])
def test_progress_is_shown_on_stderr_only(
    distributed: bool, cluster: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.arange(8).reshape(2, 4)
    assert hd.pmap(square, array, progress=True, distributed=distributed).shape == (2, 4)
    out, err = capsys.readouterr()
    assert out == ""
    assert "8/8" in err


def test_progress_of_unknown_length_and_of_a_failure(cluster: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert hd.pmap(square, (x for x in range(3)), progress=True) == [0, 1, 4]
    with pytest.raises(hd.RemoteException):
        hd.pmap(square, ["not a number"], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3" in err
    assert err.endswith("\n")


def test_without_progress_nothing_is_shown(cluster: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    hd.pmap(square, range(8))
    assert capsys.readouterr() == ("", "")


# ---- bad arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda f: hd.pmap(5, [1])),  # type: ignore[arg-type]
        (TypeError, lambda f: hd.pmap(f)),
        (TypeError, lambda f: hd.pmap(f, 5)),  # type: ignore[arg-type]
        (TypeError, lambda f: hd.pmap(f, [1], 5)),  # type: ignore[arg-type]
        (ValueError, lambda f: hd.pmap(f, [1], batch_size=0)),
        (ValueError, lambda f: hd.pmap(f, [1], batch_size=-1)),
        (ValueError, lambda f: hd.pmap(f, [1], batch_size=1.5)),  # type: ignore[arg-type]
        (ValueError, lambda f: hd.pmap(f, [1], batch_size=True)),
        (TypeError, lambda f: hd.pmap(f, [1], on_error=5)),  # type: ignore[arg-type]
        (TypeError, lambda f: hd.pmap(f, [1], retry_check=True)),  # type: ignore[arg-type]
        (TypeError, lambda f: hd.pmap(f, [1], retry_delays=1)),  # type: ignore[arg-type]
        (TypeError, lambda f: hd.pmap(f, [1], retry_delays=["1"])),  # type: ignore[list-item]
        (ValueError, lambda f: hd.pmap(f, [1], retry_delays=[-1])),
        (ValueError, lambda f: hd.pmap(f, [1], retry_delays=[float("nan")])),
        (TypeError, lambda f: hd.pmap(f, [1], nonsense=1)),  # type: ignore[call-arg]
    ],
)  # fmt: skip
def test_bad_arguments_are_told_before_anything_runs(
    error: type[Exception], call: Callable[[Any], Any], cluster: list[int], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(error):
        call(partial(write, log))
    assert hd.pmap(abs, [-1, -2, -3]) == [1, 2, 3]  # whatever had been sent before would have run by now
    assert not log.exists()


def test_a_function_that_cannot_be_pickled(cluster: list[int]) -> None:
    """It is no item's fault, so no item's error is handled."""
    handled: list[BaseException] = []
    with pytest.raises(hd.SerializeError) as caught:
        hd.pmap(threading.Lock().acquire, [False, False], on_error=handled.append)
    assert not hasattr(caught.value, "index")
    assert handled == []


def test_nothing_of_a_map_is_kept(cluster: list[int]) -> None:
    class Item:
        pass

    first = Item()
    ghost = weakref.ref(first)
    items = [first, Item()]
    del first
    hd.pmap(id, items)
    del items
    poll_for(lambda: ghost() is None, what="the items are let go")
