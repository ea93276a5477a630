"""The calls: what arrives, what comes back, and that nothing waits for what it need not wait for."""

from __future__ import annotations

import functools
import operator
import sys
import threading
import time
from collections.abc import Callable
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

FLAGS: dict[str, Any] = {}
"""Lives on each process; a memory cluster has one for all."""


def describe(a: Any, b: Any = "default", *rest: Any, key: Any = None, **more: Any) -> tuple[Any, ...]:
    return a, b, rest, key, more


def set_flag(name: str, value: Any = True) -> None:
    FLAGS[name] = value


def get_flag(name: str) -> Any:
    return FLAGS.get(name)


def compute_until(name: str) -> str:
    """Never blocks, never lets go of the interpreter by itself."""
    end = time.monotonic() + 20
    while not FLAGS.get(name):
        if time.monotonic() > end:
            return "nobody came"
    return "done"


def no_result() -> None:
    """What most functions return."""


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


# ---- arguments and results ----------------------------------------------------------------------------------------


def by_fetch(f: Any, pid: int, *args: Any, **kwargs: Any) -> Any:
    return hd.remotecall_fetch(f, pid, *args, **kwargs)


def by_call(f: Any, pid: int, *args: Any, **kwargs: Any) -> Any:
    return hd.remotecall(f, pid, *args, **kwargs).fetch()


def by_wait(f: Any, pid: int, *args: Any, **kwargs: Any) -> Any:
    future = hd.remotecall_wait(f, pid, *args, **kwargs)
    assert future.isready()
    return future.fetch()


def by_spawn(f: Any, pid: int, *args: Any, **kwargs: Any) -> Any:
    return hd.spawnat(pid, f, *args, **kwargs).fetch()


def by_fetchfrom(f: Any, pid: int, *args: Any, **kwargs: Any) -> Any:
    return hd.fetchfrom(pid, f, *args, **kwargs)


FAMILY: list[Callable[..., Any]] = [by_fetch, by_call, by_wait, by_spawn, by_fetchfrom]


@pytest.mark.parametrize("call", FAMILY)
def test_positional_default_and_keyword_arguments(call: Callable[..., Any], where: int) -> None:
    assert call(describe, where, 1) == (1, "default", (), None, {})
    assert call(describe, where, 1, 2, 3, 4, key=5) == (1, 2, (3, 4), 5, {})
    assert call(describe, where, 1, key=2, b=3) == (1, 3, (), 2, {})


@pytest.mark.parametrize("call", FAMILY[:3])
def test_keywords_all_belong_to_the_function(call: Callable[..., Any], where: int) -> None:
    """Also those that are named as the call's own parameters, or as parameters elsewhere in the library."""
    keywords = {"f": 1, "where": 2, "pid": 3, "timeout": 4, "args": 5, "kwargs": 6, "self": 7}
    assert hd.remotecall_fetch(describe, where, 0, **keywords)[-1] == keywords
    assert hd.remotecall(describe, where, 0, **keywords).fetch()[-1] == keywords


@pytest.mark.parametrize(
    ("f", "args", "value"),
    [
        (float, (1,), 1.0),
        (pow, (7, 2), 49),
        (functools.partial(pow, 2), (5,), 32),
        ([1, 2, 1].count, (1,), 2),
        ("abc".upper, (), "ABC"),
        (operator.attrgetter("real"), (3,), 3),
        (np.add, (1, 2), 3),
        (dict, ([("a", 1)],), {"a": 1}),
    ],
    ids=["type", "builtin", "partial", "method", "method of text", "attrgetter", "ufunc", "dict"],
)
def test_whatever_is_callable(f: Any, args: tuple[Any, ...], value: Any, where: int) -> None:
    assert hd.remotecall_fetch(f, where, *args) == value
    assert hd.remotecall(f, where, *args).fetch() == value


@pytest.mark.parametrize("value", [None, ..., NotImplemented, True, (), "", b"", 0, float], ids=repr)
def test_sentinels_and_empty_values_come_back_as_they_are(value: Any, where: int) -> None:
    for call in FAMILY:
        assert call(lambda x: x, where, value) is value or call(lambda x: x, where, value) == value
        assert type(call(lambda x: x, where, value)) is type(value)


def test_no_result_is_none_and_not_unset(where: int) -> None:
    future = hd.remotecall(no_result, where)
    assert future.fetch() is None
    assert future.isready()
    assert future.fetch() is None


@pytest.mark.parametrize("call", FAMILY)
def test_an_exception_that_is_returned_is_a_value(call: Callable[..., Any], where: int) -> None:
    value = call(lambda: ValueError("not raised"), where)
    assert type(value) is ValueError
    assert value.args == ("not raised",)


def test_a_remote_exception_that_is_returned_is_a_value(where: int, cluster: list[int]) -> None:
    try:
        hd.remotecall_fetch(operator.truediv, cluster[1], 1, 0)
    except hd.RemoteException as error:
        failure = error
    value = hd.remotecall_fetch(lambda x: x, where, failure)
    assert type(value) is hd.RemoteException
    assert value.pid == cluster[1]
    assert isinstance(hd.remotecall(lambda x: x, where, failure).fetch(), hd.RemoteException)


def test_own_calls_pass_objects_by_reference(cluster: list[int]) -> None:
    mine: list[int] = []
    for call in FAMILY:
        assert call(lambda x: x, 1, mine) is mine
    hd.remotecall_wait(mine.append, 1, 5)
    assert mine == [5]


def test_calls_to_others_pass_copies(cluster: list[int]) -> None:
    mine = [1]
    theirs = hd.remotecall_fetch(lambda x: (x.append(2), x)[1], cluster[0], mine)
    assert theirs == [1, 2]
    assert mine == [1]


def test_an_argument_may_be_changed_as_soon_as_the_call_returns(cluster: list[int]) -> None:
    """What travels is the state at the time of the call, also of memory that is not copied into the pickle."""
    array = np.zeros(300_000)
    future = hd.remotecall(np.sum, cluster[0], array)
    array += 1
    assert future.fetch() == 0.0


# ---- many and large -----------------------------------------------------------------------------------------------


def test_ten_thousand_small_calls(cluster: list[int], transport: str) -> None:
    for i in range(10_000 if transport != "memory" else 1_000):
        assert hd.remotecall_fetch(abs, cluster[0], -i) == i


def test_many_small_calls_under_way_at_once(cluster: list[int]) -> None:
    futures = [hd.remotecall(abs, cluster[i % 3], -i) for i in range(3_000)]
    assert [future.fetch() for future in futures] == list(range(3_000))


def test_many_calls_to_the_own_pid(cluster: list[int]) -> None:
    futures = [hd.spawnat(1, abs, -i) for i in range(3_000)]
    assert [future.fetch() for future in futures] == list(range(3_000))


def test_arrays_of_several_threads_do_not_mix(cluster: list[int], transport: str) -> None:
    size, rounds = (200_000, 10) if transport != "memory" else (20_000, 4)
    wrong: list[Any] = []

    def go_round(number: int) -> None:
        try:
            for i in range(rounds):
                mine = np.full(size, number * 100 + i, dtype=np.float64)
                back = hd.remotecall_fetch(lambda x: x, cluster[0], mine)
                if not np.array_equal(back, mine):
                    wrong.append((number, i))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=go_round, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("call", [by_fetch, by_call])
def test_large_values(call: Callable[..., Any], cluster: list[int]) -> None:
    array = np.arange(1_000_000)
    texts = [str(i) for i in range(100_000)]
    back = call(lambda *x: x, cluster[0], array, texts)
    assert np.array_equal(back[0], array)
    assert back[1] == texts


# ---- who waits for whom -------------------------------------------------------------------------------------------


def test_remotecall_returns_before_the_call_ends(where: int) -> None:
    gate = hd.Future()
    future = hd.remotecall(hd.fetch, where, gate)
    assert not future.isready()
    gate.put("open")
    assert future.fetch() == "open"


def test_blocked_calls_do_not_block_later_ones(cluster: list[int]) -> None:
    gate = hd.Future()
    blocked = [hd.remotecall(hd.fetch, cluster[0], gate) for _ in range(30)]
    assert hd.remotecall_fetch(hd.myid, cluster[0]) == cluster[0]
    assert not any(future.isready() for future in blocked)
    gate.put(3)
    assert [future.fetch() for future in blocked] == [3] * 30


def test_a_computing_call_does_not_block_later_ones(cluster: list[int]) -> None:
    name = f"stop {hd.remoteref_id(hd.Future())}"
    busy = hd.remotecall(compute_until, cluster[0], name)
    assert not busy.isready()  # this too is answered by the busy process
    hd.remotecall_fetch(set_flag, cluster[0], name)
    assert busy.fetch() == "done"


def test_own_calls_overlap(cluster: list[int]) -> None:
    gate = hd.Future()
    blocked = [hd.remotecall(gate.fetch, 1) for _ in range(10)]
    assert hd.remotecall(hd.myid, 1).fetch() == 1
    gate.put(1)
    assert [future.fetch() for future in blocked] == [1] * 10


def test_an_own_call_runs_on_the_callers_thread_only_if_that_waits_for_it_anyway(cluster: list[int]) -> None:
    here = threading.get_ident()
    assert hd.remotecall_fetch(threading.get_ident, 1) == here
    assert hd.fetchfrom(1, threading.get_ident) == here
    assert hd.remotecall(threading.get_ident, 1).fetch() != here
    threads: list[int] = []
    hd.remote_do(lambda: threads.append(threading.get_ident()), 1)
    poll_for(lambda: threads)
    assert threads != [here]


def test_a_sleeping_caller_gets_its_answer(cluster: list[int]) -> None:
    """The answer comes long after the caller has given up polling; the next call finds all as before."""
    for _ in range(3):
        assert hd.remotecall_fetch(time.sleep, cluster[0], 0.03) is None
        assert hd.remotecall_fetch(abs, cluster[0], -1) == 1


# ---- remote_do ----------------------------------------------------------------------------------------------------


def test_remote_do_returns_nothing_and_does_it(where: int) -> None:
    name = f"done {hd.remoteref_id(hd.Future())}"
    assert hd.remote_do(set_flag, where, name, value=7) is None  # type: ignore[func-returns-value]
    poll_for(lambda: hd.remotecall_fetch(get_flag, where, name) == 7)


def test_a_failing_remote_do_is_shown_and_harms_nobody(where: int) -> None:
    with Printed() as printed:
        hd.remote_do(operator.truediv, where, 1, 0)
        printed.wait_for("ZeroDivisionError", "err")
    assert hd.remotecall_fetch(abs, where, -1) == 1


class BrokenStream:
    """Raises when a failure is written to it, and notes what else is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.refused = 0
        self.written: list[str] = []

    def write(self, text: str) -> int:
        if text.startswith("remote_do"):
            self.refused += 1
            raise self.error
        self.written.append(text)
        return len(text)

    def flush(self) -> None:
        pass


def break_stderr(error: BaseException) -> None:
    FLAGS["stderr"], sys.stderr = sys.stderr, BrokenStream(error)  # type: ignore[assignment]


def refused() -> int:
    return getattr(sys.stderr, "refused", 0)


def mend_stderr() -> list[str]:
    """What was written meanwhile."""
    broken, sys.stderr = sys.stderr, FLAGS["stderr"]
    return broken.written  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    "error", [ValueError("I/O operation on closed file"), SystemExit(3)], ids=["closed", "raises an exit"]
)
def test_a_failing_remote_do_that_cannot_be_shown_harms_nobody(where: int, error: BaseException) -> None:
    async def fail_later() -> None:
        raise ValueError("later")

    hd.remotecall_fetch(break_stderr, where, error)
    try:
        hd.remote_do(operator.truediv, where, 1, 0)
        poll_for(lambda: hd.remotecall_fetch(refused, where) == 1)
        hd.remote_do(fail_later, where)
        poll_for(lambda: hd.remotecall_fetch(refused, where) == 2)
    finally:
        written = hd.remotecall_fetch(mend_stderr, where)
    assert written == []
    assert hd.remotecall_fetch(abs, where, -1) == 1


# ---- any worker ---------------------------------------------------------------------------------------------------


def test_any_takes_the_workers_in_turn(cluster: list[int]) -> None:
    assert sorted(hd.fetchfrom("any", hd.myid) for _ in cluster) == cluster
    assert sorted(hd.spawn(hd.myid).fetch() for _ in cluster) == cluster
    assert sorted(hd.spawnat("any", hd.myid).fetch() for _ in cluster) == cluster
