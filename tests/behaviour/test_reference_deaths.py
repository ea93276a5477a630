"""What a dead process held, and what others held of it, is forgotten; and nobody waits for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]

KEPT: dict[str, Any] = {}


def keep(name: str, value: Any) -> None:
    KEPT[name] = value


def use(name: str) -> Any:
    return KEPT[name].fetch()


def kill(pid: int) -> None:
    os.kill(hd.remotecall_fetch(os.getpid, pid), signal.SIGKILL)


@pytest.fixture
def victim(cluster: list[int], transport: str) -> Iterator[int]:
    """A worker that the test may kill."""
    (pid,) = hd.addprocs(1, transport=transport)
    yield pid
    if pid in hd.workers():
        hd.rmprocs(pid)


@pytest.fixture
def soon() -> Iterator[None]:
    """The test is over in a bounded time: nobody waits for the dead."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 4


def test_a_call_on_a_killed_worker_ends(victim: int, soon: None) -> None:
    future = hd.remotecall(time.sleep, victim, 100)
    other = hd.remotecall(time.sleep, victim, 100)
    seen: list[hd.Future] = []
    other.add_done_callback(seen.append)
    kill(victim)
    with pytest.raises(hd.ProcessExitedException) as caught:
        future.fetch()
    assert caught.value.pid == victim
    assert caught.value.signal == signal.SIGKILL
    assert "SIGKILL" in caught.value.reason
    poll_for(lambda: seen == [other])
    for verb in (other.fetch, other.wait, future.fetch):
        with pytest.raises(hd.ProcessExitedException):
            verb()
    assert future.isready()


@pytest.mark.parametrize("verb", ["fetch", "wait", "put", "isready", "remotecall_fetch", "remotecall", "remote_do"])
def test_asking_a_worker_that_is_gone_fails(verb: str, victim: int, soon: None) -> None:
    future = hd.Future(victim)
    assert not future.isready()
    kill(victim)
    poll_for(lambda: victim not in hd.workers())
    ask = getattr(future, verb, None) or getattr(hd, verb)
    arguments = {"put": (1,), "fetch": (), "wait": (), "isready": ()}.get(verb, (abs, victim, -1))
    with pytest.raises(hd.ProcessExitedException) as caught:
        ask(*arguments)
    assert caught.value.pid == victim


def test_a_third_worker_that_waits_is_told(victim: int, cluster: list[int], soon: None) -> None:
    """For a call that runs on the victim, and for a future there that nobody has put anything into."""
    running, unset = hd.remotecall(time.sleep, victim, 100), hd.Future(victim)
    readers = [hd.remotecall(hd.fetch, pid, f) for pid in cluster[:2] for f in (running, unset)]
    waiter = hd.remotecall(lambda f: f.wait().where, cluster[2], running)
    caller = hd.remotecall(lambda: hd.remotecall_fetch(time.sleep, victim, 100), cluster[2])
    assert hd.remotecall_fetch(lambda: hd.remotecall_fetch(hd.myid, victim), cluster[2]) == victim
    kill(victim)
    for future in [*readers, waiter, caller]:
        with pytest.raises(hd.RemoteException) as caught:
            future.fetch(timeout=4)
        gone = caught.value.__cause__
        assert isinstance(gone, hd.ProcessExitedException)
        assert gone.pid == victim
        assert "SIGKILL" in gone.reason


def test_a_fetched_value_outlives_its_process(victim: int) -> None:
    future = hd.remotecall(list, victim, "ab")
    future.fetch()
    hd.rmprocs(victim)
    assert future.fetch() == ["a", "b"]
    assert future.isready()


def test_the_claims_of_the_dead_vanish(victim: int, cluster: list[int]) -> None:
    future = hd.remotecall_wait(abs, cluster[0], -1)
    mine = hd.Future().put(2)
    hd.remotecall_wait(keep, victim, "f", [future, mine])
    rrid = hd.remoteref_id(future)
    del future
    assert rrid in hd.live_references(cluster[0])
    assert hd.remoteref_id(mine) in hd.live_references(1)
    kill(victim)
    poll_for(lambda: rrid not in hd.live_references(cluster[0]))
    poll_for(lambda: hd.remoteref_id(mine) not in hd.live_references(1))
    assert mine.fetch() == 2


def test_what_a_dead_worker_has_made_stays_for_those_who_hold_it(victim: int, cluster: list[int]) -> None:
    """The maker of a reference dies; the owner and the holder live."""
    future = hd.remotecall_fetch(lambda: hd.remotecall(abs, cluster[0], -5), victim)
    assert hd.remoteref_id(future).whence == victim
    hd.remotecall_wait(keep, cluster[1], "f", future)
    kill(victim)
    poll_for(lambda: victim not in hd.workers())
    poll_for(lambda: victim not in hd.remotecall_fetch(hd.workers, cluster[0]))
    assert hd.remoteref_id(future) in hd.live_references(cluster[0])
    assert future.fetch() == 5
    assert hd.remotecall_fetch(use, cluster[1], "f") == 5
    poll_for(lambda: hd.remoteref_id(future) not in hd.live_references(cluster[0]))


def test_dropping_references_to_the_dead_does_no_harm(victim: int, cluster: list[int]) -> None:
    futures = [hd.remotecall(abs, victim, -i) for i in range(10)]
    hd.remotecall_wait(keep, cluster[0], "f", futures[0])
    kill(victim)
    poll_for(lambda: victim not in hd.workers())
    del futures
    assert hd.remotecall_fetch(abs, cluster[0], -1) == 1
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(use, cluster[0], "f")
    assert isinstance(caught.value.__cause__, hd.ProcessExitedException)


def test_a_reference_to_the_dead_still_travels(victim: int, cluster: list[int]) -> None:
    future = hd.remotecall(time.sleep, victim, 100)
    kill(victim)
    with pytest.raises(hd.ProcessExitedException):
        future.fetch()
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(hd.fetch, cluster[0], future)
    assert isinstance(caught.value.__cause__, hd.ProcessExitedException)
    assert caught.value.__cause__.pid == victim
