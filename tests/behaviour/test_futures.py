"""Futures: written once, read by many, wherever the value is."""

from __future__ import annotations

import copy
import operator
import threading
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


def run_together(*functions: Any) -> list[Any]:
    """Run functions in threads of their own; their results in order, or the first exception."""
    results: dict[int, Any] = {}

    def run(number: int, function: Any) -> None:
        try:
            results[number] = function()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[number] for number in range(len(functions))]


# ---- the value ----------------------------------------------------------------------------------------------------


def test_a_new_future_is_unset_and_put_sets_it(where: int) -> None:
    future = hd.Future(where)
    assert future.where == where
    assert not future.isready()
    assert future.put(5) is future
    assert future.isready()
    assert future.fetch() == future.result() == hd.fetch(future) == 5
    assert future.wait() is future


def test_none_is_a_value(where: int) -> None:
    future = hd.Future(where)
    future.put(None)
    assert future.isready()
    assert future.fetch() is None
    with pytest.raises(hd.InvalidStateException):
        future.put(None)


def test_a_second_put_fails_and_changes_nothing(where: int) -> None:
    future = hd.Future(where)
    future.put(1)
    with pytest.raises(hd.InvalidStateException, match="only once") as caught:
        future.put(2)
    assert caught.value.state == "set"
    assert future.fetch() == 1
    with pytest.raises(hd.InvalidStateException, match="only once"):
        future.put(3)
    assert future.fetch() == 1


def test_a_second_put_by_another_process_fails(where: int, cluster: list[int]) -> None:
    future = hd.Future(where)
    assert hd.remotecall_fetch(lambda f: f.put(1).fetch(), cluster[1], future) == 1
    with pytest.raises(hd.InvalidStateException, match="only once"):
        future.put(2)
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(lambda f: f.put(3), cluster[2], future)
    assert isinstance(caught.value.__cause__, hd.InvalidStateException)
    assert caught.value.__cause__.state == "set"
    assert future.fetch() == 1


def test_a_put_into_the_future_of_a_call_that_is_done_fails(where: int) -> None:
    future = hd.remotecall_wait(abs, where, -3)
    with pytest.raises(hd.InvalidStateException):
        future.put(4)
    assert future.fetch() == 3


def test_of_a_put_and_a_call_the_first_one_stays(where: int) -> None:
    gate = hd.Future()
    future = hd.remotecall(hd.fetch, where, gate)
    future.put("put")
    gate.put("called")
    assert future.fetch() == "put"


def test_of_many_puts_at_once_one_succeeds(where: int, cluster: list[int]) -> None:
    def attempt(f: hd.Future, value: int) -> bool:
        try:
            f.put(value)
        except hd.InvalidStateException:
            return False
        return True

    for _ in range(10):
        future = hd.Future(where)
        tries = [hd.remotecall(attempt, cluster[i % 3], future, i) for i in range(6)]
        won = [i for i, each in enumerate(tries) if each.fetch()]
        assert len(won) == 1
        assert future.fetch() == won[0]


def test_puts_of_several_threads_that_race_leave_nothing(where: int, cluster: list[int]) -> None:
    """The first to succeed gives up the claim; what is still under way must not make the reference anew."""
    before = set(hd.live_references(where))

    def put(future: hd.Future, value: int, succeeded: list[int]) -> None:
        try:
            future.put(value)
            succeeded.append(value)
        except hd.InvalidStateException:
            pass

    for _ in range(60):
        future = hd.Future(where)
        succeeded: list[int] = []
        racers = [threading.Thread(target=put, args=(future, value, succeeded)) for value in range(3)]
        racers += [threading.Thread(target=action) for action in (future.isready, future.cancel)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(10)
        try:
            assert [future.fetch(timeout=10)] == succeeded
        except CancelledError:
            assert not succeeded
        del future, racers
    poll_for(lambda: set(hd.live_references(where)) <= before)


def test_an_unpicklable_put_leaves_the_future_unset(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    with pytest.raises(hd.SerializeError):
        future.put(threading.Lock())
    assert not future.isready()
    future.put(1)
    assert future.fetch() == 1


def test_indexing_indexes_the_value(where: int) -> None:
    array = np.arange(12).reshape(3, 4)
    future = hd.remotecall(np.asarray, where, array)
    assert future[1, 2] == 6
    assert np.array_equal(future[()], array)
    assert np.array_equal(future[1:], array[1:])
    assert np.array_equal(future[np.array([0, 2])], array[[0, 2]])
    assert hd.remotecall(dict, where, a=1)["a"] == 1
    with pytest.raises(KeyError):
        hd.remotecall(dict, where)["a"]


def test_fetch_returns_the_very_same_object_each_time(where: int) -> None:
    future = hd.remotecall(list, where, "abc")
    assert future.fetch() is future.fetch()


def test_fetch_of_what_is_no_reference(cluster: list[int]) -> None:
    for value in (5, None, [hd.Future()], "text"):
        assert hd.fetch(value) is value


def test_what_a_future_cannot_do(cluster: list[int]) -> None:
    future = hd.Future()
    for verb in ("take", "close", "isopen"):
        assert not hasattr(future, verb)


# ---- many readers -------------------------------------------------------------------------------------------------


def test_many_threads_get_the_same_object(where: int) -> None:
    gate = hd.Future()
    future = hd.remotecall(lambda g: (g.fetch(), np.arange(50_000))[1], where, gate)
    values = run_together(*[future.fetch] * 10, lambda: gate.put(1))[:10]
    assert all(value is values[0] for value in values)
    assert values[0].sum() == 50_000 * 49_999 // 2


def test_processes_fetch_at_the_same_time(where: int, cluster: list[int]) -> None:
    future = hd.Future(where)
    readers = [hd.remotecall(hd.fetch, pid, future) for pid in [*cluster, 1] * 3]
    future.put("value")
    assert [reader.fetch() for reader in readers] == ["value"] * 12


def test_a_fetched_future_travels_with_its_value(cluster: list[int]) -> None:
    future = hd.remotecall(lambda: "value", cluster[0])
    future.fetch()
    for pid in cluster:  # the owner among them
        assert hd.remotecall_fetch(hd.fetch, pid, future) == "value"
        assert hd.remotecall_fetch(lambda f: (f.isready(), f.where), pid, future) == (True, cluster[0])


def test_a_failed_future_travels_with_its_error(cluster: list[int]) -> None:
    future = hd.remotecall(operator.truediv, cluster[0], 1, 0)
    with pytest.raises(hd.RemoteException):
        future.fetch()
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(hd.fetch, cluster[1], future)
    inner = caught.value.__cause__
    assert isinstance(inner, hd.RemoteException)
    assert isinstance(inner.__cause__, ZeroDivisionError)


def test_futures_inside_of_values(cluster: list[int]) -> None:
    """In containers, in closures, as attributes, and many of them."""
    futures = {i: hd.remotecall(abs, cluster[i % 3], -i) for i in range(30)}
    back = hd.remotecall_fetch(lambda fs: {i: f.fetch() for i, f in fs.items()}, cluster[0], futures)
    assert back == {i: i for i in range(30)}
    assert hd.remotecall_fetch(lambda: sum(f.fetch() for f in futures.values()), cluster[1]) == sum(range(30))


def test_a_future_that_comes_home_is_the_same_object(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    assert hd.remotecall_fetch(lambda f: f, cluster[1], future) is future
    mine = hd.Future()
    assert hd.remotecall_fetch(lambda f: [f, f], cluster[0], mine) == [mine, mine]
    assert hd.remotecall_fetch(lambda f: [f, f], cluster[0], mine)[1] is mine


def test_a_future_that_comes_home_with_its_value_brings_it(cluster: list[int]) -> None:
    future = hd.remotecall(list, cluster[0], "ab")
    back = hd.remotecall_fetch(lambda f: (f.fetch(), f)[1], cluster[1], future)
    assert back is future
    assert future.isready()
    assert future.fetch() == ["a", "b"]


# ---- waiting ------------------------------------------------------------------------------------------------------


def test_timeouts_lose_nothing(where: int) -> None:
    future = hd.Future(where)
    for wait in (future.fetch, future.wait, future.result):
        with pytest.raises(TimeoutError, match="within"):
            wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            wait(timeout=0)
    future.put(8)
    assert future.wait(timeout=10).fetch(timeout=10) == 8
    assert future.fetch(timeout=0) == 8


def test_wait_does_not_fetch(cluster: list[int]) -> None:
    future = hd.remotecall(np.zeros, cluster[0], 1_000_000)
    assert hd.wait(future) is future
    assert hd.remoteref_id(future) in hd.live_references(cluster[0])
    assert future.isready()
    assert future.wait(timeout=0) is future


def test_isready_sees_what_another_process_has_put(where: int, cluster: list[int]) -> None:
    """Also while this process has asked for the value, or for the end, already."""
    future = hd.Future(where)
    with pytest.raises(TimeoutError):
        future.wait(timeout=0)
    hd.remotecall_wait(lambda f: f.put(1) and None, cluster[1], future)
    assert future.isready()


def test_wait_and_fetch_of_a_failed_call_raise(where: int) -> None:
    future = hd.remotecall(operator.truediv, where, 1, 0)
    for look in (future.wait, future.fetch, future.wait, lambda: future[0], lambda: hd.wait(future)):
        with pytest.raises(hd.RemoteException) as caught:
            look()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert future.isready()


def test_callbacks(where: int) -> None:
    gate = hd.Future()
    future = hd.remotecall(hd.fetch, where, gate)
    seen: list[Any] = []
    threads = []

    def note(f: hd.Future) -> None:
        threads.append(threading.current_thread())
        seen.append(f.fetch(timeout=0))

    future.add_done_callback(note)
    future.add_done_callback(note)
    assert seen == []
    gate.put(4)
    poll_for(lambda: seen == [4, 4])
    assert threading.current_thread() not in threads
    future.add_done_callback(note)  # done: at once, and here
    assert seen == [4, 4, 4]
    assert threads[-1] is threading.current_thread()


def test_a_failing_callback_is_shown_and_harms_nobody(where: int) -> None:
    future = hd.Future(where)
    seen: list[int] = []
    with Printed() as printed:
        future.add_done_callback(lambda f: operator.truediv(1, 0))
        future.add_done_callback(lambda f: seen.append(f.fetch()))
        future.put(1)
        poll_for(lambda: seen == [1])
        future.add_done_callback(lambda f: operator.truediv(1, 0))
        # Threads of the library show them, in their own time.
        poll_for(lambda: printed.err.count("ZeroDivisionError") == 2)


def test_callbacks_of_failed_calls(where: int) -> None:
    future = hd.remotecall(operator.truediv, where, 1, 0)
    seen: list[hd.Future] = []
    future.add_done_callback(seen.append)
    poll_for(lambda: seen)
    with pytest.raises(hd.RemoteException):
        seen[0].fetch()


def test_a_callback_may_call(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    seen: list[int] = []
    future.add_done_callback(lambda f: seen.append(hd.remotecall_fetch(hd.myid, cluster[1])))
    future.put(None)
    poll_for(lambda: seen == [cluster[1]])


# ---- identity -----------------------------------------------------------------------------------------------------


def test_identity(cluster: list[int]) -> None:
    one, other = hd.Future(cluster[0]), hd.Future(cluster[0])
    assert one == one
    assert one != other
    assert one != 5
    assert len({one, other, one}) == 2
    rrid = hd.remoteref_id(one)
    assert rrid == hd.RRID(1, rrid.id)
    assert (rrid.whence, one.where) == (1, cluster[0])
    assert hd.remotecall_fetch(hd.remoteref_id, cluster[1], one) == rrid
    assert hd.remotecall_fetch(lambda f: hash(f), cluster[1], one) == hash(one)


def test_ids_are_unique_for_each_creator(cluster: list[int]) -> None:
    rrids = [hd.remoteref_id(hd.Future(pid)) for pid in [1, *cluster] * 20]
    for pid in cluster:
        rrids += hd.remotecall_fetch(lambda: [hd.remoteref_id(hd.Future()) for _ in range(20)], pid)
    assert len(set(rrids)) == len(rrids)


def test_copies_are_the_future_itself(where: int) -> None:
    future = hd.Future(where)
    assert copy.copy(future) is future
    assert copy.deepcopy([future])[0] is future


def test_repr_tells_where_and_whether(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    rrid = hd.remoteref_id(future)
    assert repr(future) == f"Future(where={cluster[0]}, whence=1, id={rrid.id})"
    future.put(1)
    assert repr(future).endswith(", fetched)")
