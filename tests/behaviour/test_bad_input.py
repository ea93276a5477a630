"""Wrong arguments: an error that says what is wrong, before anything is sent or changed."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.mark.parametrize("verb", ["wait", "isready", "put", "take", "close", "isopen", "finalize"])
def test_verbs_name_what_they_cannot_take(verb: str) -> None:
    with pytest.raises(TypeError, match=r"takes .*, not int"):
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
        with pytest.raises(TypeError, match="a pid is an integer"):
            call(where, abs)
    with pytest.raises(TypeError, match="a pid is an integer"):
        hd.remotecall(abs, "any")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", ["1", (1,), object()], ids=lambda timeout: type(timeout).__name__)
def test_what_is_no_timeout(timeout: Any, cluster: list[int]) -> None:
    for pid in (1, cluster[0]):
        future = hd.Future(pid)
        for verb in (future.fetch, future.wait, future.result):
            with pytest.raises(TypeError, match="number of seconds"):
                verb(timeout=timeout)
        future.put(1)
        assert future.fetch() == 1


def test_a_negative_timeout_is_over_at_once(cluster: list[int]) -> None:
    """As it comes out of subtracting what other waits have used up."""
    for pid in (1, cluster[0]):
        with pytest.raises(TimeoutError):
            hd.Future(pid).fetch(timeout=-0.5)


def test_an_endless_timeout(cluster: list[int]) -> None:
    for timeout in (float("inf"), 1e300, 10**9):
        assert hd.remotecall(abs, cluster[0], -1).fetch(timeout=timeout) == 1
