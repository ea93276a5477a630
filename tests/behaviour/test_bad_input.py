"""Wrong arguments: an error that says what is wrong, before anything is sent or changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.names import name_of

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

CALLS: list[Any] = [hd.remotecall, hd.remotecall_fetch, hd.remotecall_wait, hd.remote_do, lambda f, p: hd.spawnat(p, f)]

NO_PIDS: list[Any] = [None, 2.0, "2", "all", (2,), [2], object(), True, np.float64(2), b"2"]


@pytest.fixture(autouse=True)
def all_is_well(cluster: list[int]) -> Iterator[None]:
    yield
    assert hd.workers() == cluster
    assert [hd.remotecall_fetch(abs, pid, -pid) for pid in cluster] == cluster


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("pid", NO_PIDS, ids=name_of)
def test_what_is_no_pid(call: Any, pid: Any, cluster: list[int]) -> None:
    with pytest.raises(TypeError, match=f"a pid is an integer, not {type(pid).__name__}"):
        call(abs, pid)


@pytest.mark.parametrize("pid", NO_PIDS[1:], ids=name_of)
def test_a_future_on_what_is_no_pid(pid: Any, cluster: list[int]) -> None:
    with pytest.raises(TypeError, match="a pid is an integer"):
        hd.Future(pid)


@pytest.mark.parametrize("call", [*CALLS, lambda f, p: hd.Future(p), lambda f, p: hd.live_references(p)])
@pytest.mark.parametrize("pid", [0, -1, 999_999, 1 << 80])
def test_a_process_that_never_was(call: Any, pid: int, cluster: list[int]) -> None:
    with pytest.raises(hd.NoSuchProcessError, match=f"no process with id {pid} exists") as caught:
        call(lambda: None, pid)
    assert caught.value.pid == pid
    assert isinstance(caught.value, LookupError)


def test_a_process_that_never_was_asked_by_a_worker(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(lambda: hd.remotecall_fetch(abs, 999_999, 1), cluster[0])
    assert isinstance(caught.value.__cause__, hd.NoSuchProcessError)


@pytest.mark.parametrize("number", [np.int64, np.int16, np.uint32], ids=lambda kind: kind.__name__)
def test_integers_of_every_kind_are_pids(number: Any, cluster: list[int]) -> None:
    pid = number(cluster[0])
    assert hd.remotecall_fetch(hd.myid, pid) == cluster[0]
    future = hd.remotecall_wait(hd.myid, pid)
    assert type(future.where) is int
    assert future.fetch() == cluster[0]
    hd.remote_do(hd.myid, pid)
    assert type(hd.Future(pid).where) is int
    assert hd.remotecall(hd.myid, number(1)).fetch() == 1
    assert hd.live_references(pid) == []
    assert hd.path_to(pid) == hd.path_to(cluster[0])
    assert hd.procs(pid) == hd.procs_on_node(pid) == hd.procs()
    assert hd.get_status(pid) is None


VERBS = ["wait", "isready", "put", "take", "close", "isopen", "finalize", "remoteref_id"]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_name_what_they_cannot_take(verb: str) -> None:
    with pytest.raises(TypeError, match=rf"{verb} takes .*, not int"):
        getattr(hd, verb)(*((5, 1) if verb == "put" else (5,)))


@pytest.mark.parametrize("verb", ["rmprocs", "interrupt"])
@pytest.mark.parametrize("pid", ["2", 2.0, None, True])
def test_who_takes_pids_says_so(verb: str, pid: Any, cluster: list[int]) -> None:
    with pytest.raises(TypeError, match=f"{verb} takes pids|a pid is an integer"):
        getattr(hd, verb)(pid)
    assert hd.workers() == cluster


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("thing", [None, 5, "abs", [], object()], ids=lambda thing: type(thing).__name__)
def test_what_cannot_be_called(call: Any, thing: Any, cluster: list[int]) -> None:
    with pytest.raises(TypeError, match=f"must be callable, not {type(thing).__name__}"):
        call(thing, cluster[0])


@pytest.mark.parametrize("call", CALLS)
def test_function_and_pid_swapped(call: Any, cluster: list[int]) -> None:
    with pytest.raises(TypeError, match="callable, not int"):
        call(cluster[0], abs)


def test_too_few_arguments(cluster: list[int]) -> None:
    for call in (hd.remotecall, hd.remotecall_fetch, hd.remotecall_wait, hd.remote_do, hd.spawnat):
        with pytest.raises(TypeError, match="required positional argument"):
            call(abs)


def test_wrong_arguments_of_the_function_are_its_own_error(cluster: list[int]) -> None:
    for pid in (1, cluster[0]):
        with pytest.raises(hd.RemoteException) as caught:
            hd.remotecall_fetch(abs, pid)
        assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("where", ["any ", "Any", "ANY", ":any"])
def test_only_the_literal_any_is_special(where: str, cluster: list[int]) -> None:
    for call in (hd.spawnat, hd.fetchfrom):
        with pytest.raises(TypeError, match=f"a pid is an integer.* a worker pool .* \"any\".* not '{where}'"):
            call(where, abs)
    with pytest.raises(TypeError, match=r'a pid is an integer.* a worker pool .* not \'any\'; .*spawnat\("any", f'):
        hd.remotecall(abs, "any")  # type: ignore[arg-type]


def test_the_second_argument_is_named_where_the_function_is_the_second(cluster: list[int]) -> None:
    for call in (hd.spawnat, hd.fetchfrom):
        text = rf"{call.__name__}\(pid, f\): the second argument must be callable, not int"
        for where in (abs, cluster[0], "any"):
            with pytest.raises(TypeError, match=text):
                call(where, 5)  # type: ignore[operator,arg-type]
    with pytest.raises(TypeError, match="the first argument must be callable, not int"):
        hd.spawn(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["under way", "ended"])
def test_a_callback_can_be_called(state: str, cluster: list[int]) -> None:
    future, loop = hd.Future(cluster[0]), hd.distributed(abs, [1, 2])
    if state == "ended":
        future.put(1)
        loop.wait(10)
    for thing in (future, loop):
        with pytest.raises(TypeError, match="add_done_callback takes a function, not int"):
            thing.add_done_callback(3)


@pytest.mark.parametrize(
    "timeout", ["1", (1,), object(), True, float("nan"), np.float32("nan")], ids=lambda timeout: type(timeout).__name__
)
def test_what_is_no_timeout(timeout: Any, cluster: list[int]) -> None:
    error = ValueError if timeout != timeout else TypeError
    for pid in (1, cluster[0]):
        future, channel = hd.Future(pid), hd.RemoteChannel(pid)
        verbs = (future.fetch, future.wait, future.result, channel.take, channel.fetch, channel.wait)
        for done in (False, True):
            for verb in verbs:
                with pytest.raises(error, match="number of seconds"):
                    verb(timeout=timeout)
            if not done:
                future.put(1)
                channel.put(1)
        assert future.fetch() == channel.take() == 1
    for call in (lambda: hd.rmprocs(waitfor=timeout), lambda: hd.addprocs(0, timeout=timeout)):
        with pytest.raises(error, match="number of seconds"):
            call()


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.uint8, Fraction, Decimal], ids=lambda kind: kind.__name__)
def test_numbers_of_every_kind_are_timeouts(kind: Any, cluster: list[int]) -> None:
    for pid in (1, cluster[0]):
        assert hd.remotecall(abs, pid, -1).fetch(timeout=kind(60)) == 1
        assert hd.RemoteChannel(pid).put(2, timeout=kind(60)).take(timeout=kind(60)) == 2
        with pytest.raises(TimeoutError):
            hd.Future(pid).fetch(timeout=kind(0))


@pytest.mark.parametrize("kind", [np.int64, np.uint8], ids=lambda kind: kind.__name__)
def test_integers_of_every_kind_are_counts(kind: Any, cluster: list[int]) -> None:
    assert hd.pmap(abs, [-1, -2, -3], batch_size=kind(2)) == [1, 2, 3]
    assert list(hd.imap(abs, [-1, -2, -3], batch_size=kind(2))) == [1, 2, 3]
    assert hd.asyncmap(abs, [-1, -2, -3], ntasks=kind(2)) == [1, 2, 3]
    assert hd.asyncmap(abs, [-1, -2, -3], ntasks=lambda: kind(2)) == [1, 2, 3]
    assert hd.asyncmap(list, [1, 2, 3], batch_size=kind(2)) == [(1,), (2,), (3,)]
    assert len(list(hd.ExponentialBackOff(kind(2)))) == 2


@pytest.mark.parametrize("count", [True, 2.0, "2", np.float64(2), np.array([1, 2]), 0], ids=repr)
def test_what_is_no_count(count: Any, cluster: list[int]) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        hd.pmap(abs, [1], batch_size=count)
    for keywords in ({"ntasks": count}, {"batch_size": count}, {"ntasks": lambda: count}):
        with pytest.raises((TypeError, ValueError), match="must be a whole number"):
            hd.asyncmap(abs, [1], **keywords)
    if not isinstance(count, int) or count is True:
        with pytest.raises(ValueError, match="n must be a whole number"):
            hd.ExponentialBackOff(count)


def test_a_negative_timeout_is_over_at_once(cluster: list[int]) -> None:
    """As it comes out of subtracting what other waits have used up."""
    for pid in (1, cluster[0]):
        with pytest.raises(TimeoutError):
            hd.Future(pid).fetch(timeout=-0.5)


def test_an_endless_timeout(cluster: list[int]) -> None:
    for timeout in (float("inf"), 1e300, 10**9):
        assert hd.remotecall(abs, cluster[0], -1).fetch(timeout=timeout) == 1


def test_unknown_keywords_of_maps_are_theirs(cluster: list[int]) -> None:
    for name in ("pmap", "imap", "imap_unordered"):
        with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'foo'"):
            getattr(hd, name)(abs, [1], foo=1)


def test_lazy_maps_show_what_they_take() -> None:
    shown = inspect.signature(hd.pmap).parameters
    assert inspect.signature(hd.imap).parameters == inspect.signature(hd.imap_unordered).parameters == shown
