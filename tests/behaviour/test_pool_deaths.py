"""Pools when members, owners and takers come and go: nobody waits for the dead, and they swallow no worker."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]


def kill(pid: int) -> None:
    os.kill(hd.remotecall_fetch(os.getpid, pid), signal.SIGKILL)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waiting(pool: hd.WorkerPool) -> int:
    assert pool._channel is not None
    return pool._channel.waiting()


@pytest.fixture
def victims(cluster: list[int], transport: str) -> Iterator[list[int]]:
    """Two workers that the test may kill."""
    pids = hd.addprocs(2, transport=transport)
    yield pids
    hd.rmprocs(pids)


@pytest.fixture
def threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        yield executor


# ---- members --------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[hd.WorkerPool], Any]] = {
    "isready": lambda pool: pool.isready(),
    "len": len,
    "take": lambda pool: pool.take(timeout=10),
    "wait": lambda pool: pool.wait(timeout=10) is pool,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_dead_member_is_forgotten_by_each_operation(
    operation: str, where: str, cluster: list[int], victims: list[int]
) -> None:
    dead = victims[0]
    pool = hd.WorkerPool([dead, cluster[1]])
    kill(dead)
    poll_for(lambda: dead not in hd.workers())
    ask = OPERATIONS[operation]
    result = ask(pool) if where == "here" else hd.remotecall_fetch(ask, cluster[0], pool)
    assert result == {"isready": True, "len": 1, "take": cluster[1], "wait": True}[operation]
    assert len(pool) == 1


@pytest.mark.parametrize("removed", [True, False])
def test_a_pool_of_the_dead(removed: bool, cluster: list[int], victims: list[int]) -> None:
    pool = hd.WorkerPool(victims)
    if removed:
        hd.rmprocs(victims)
    else:
        for pid in victims:
            kill(pid)
        poll_for(lambda: not set(victims) & set(hd.workers()))
    assert not pool.isready()
    assert len(pool) == 0
    gone = ", ".join(map(str, victims))
    for take in (pool.take, lambda: hd.remotecall_fetch(abs, pool, 1), lambda: hd.remotecall(abs, pool, 1)):
        with pytest.raises(hd.ClusterError, match="no active worker available in the pool") as caught:
            take()
        assert gone in str(caught.value) or ", ".join(map(str, victims[::-1])) in str(caught.value)
    with pytest.raises(hd.RemoteException) as remote:
        hd.remotecall_fetch(hd.take, cluster[0], pool)
    assert type(remote.value.__cause__) is hd.ClusterError
    with pytest.raises(TimeoutError):
        pool.wait(timeout=0.01)
    for pid in victims:
        assert pool.put(pid) == pid
        pool.push(pid)
    assert not pool.isready()
    assert hd.WorkerPool([*victims, 1]).take() == 1
    assert not hd.WorkerPool(victims).isready()


def test_those_who_wait_are_told_when_the_last_member_dies(
    cluster: list[int], victims: list[int], threads: concurrent.futures.ThreadPoolExecutor
) -> None:
    pool = hd.WorkerPool(victims)
    pids = [pool.take(), pool.take()]
    takes = [threads.submit(pool.take), threads.submit(hd.remotecall_fetch, hd.take, cluster[0], pool)]
    takes.append(threads.submit(hd.remotecall, abs, pool, 1))
    poll_for(lambda: waiting(pool) == 3)
    kill(pids[0])
    poll_for(lambda: len(pool) == 1)
    assert waiting(pool) == 3  # one member lives, and may come back
    kill(pids[1])
    for take in takes:
        error = take.exception(timeout=10)
        assert "no active worker available in the pool" in str(error)
        assert isinstance(error if take is not takes[1] else error.__cause__, hd.ClusterError)  # type: ignore[union-attr]


def test_a_call_whose_worker_dies(victims: list[int], cluster: list[int]) -> None:
    pool = hd.WorkerPool([*victims, cluster[0]])
    for call in (hd.remotecall_fetch, lambda f, pool: hd.remotecall(f, pool).fetch()):
        with pytest.raises(hd.ProcessExitedException):
            call(die, pool)
    assert [hd.remotecall_fetch(hd.myid, pool) for _ in range(3)] == [cluster[0]] * 3
    poll_for(lambda: len(pool) == 1)


# ---- takers ---------------------------------------------------------------------------------------------------------


def hold(pool: hd.WorkerPool) -> int:
    """Take a worker and keep it."""
    return pool.take(timeout=10)


def test_what_a_dead_taker_held_is_free_again(cluster: list[int], victims: list[int]) -> None:
    pool = hd.WorkerPool(cluster[:2])
    assert hd.remotecall_fetch(hold, victims[0], pool) == cluster[0]
    assert hd.remotecall_fetch(hold, victims[1], pool) == cluster[1]
    assert not pool.isready()
    kill(victims[0])
    assert pool.take(timeout=10) == cluster[0]
    hd.rmprocs(victims[1])
    assert pool.take(timeout=10) == cluster[1]


def test_a_taker_that_held_itself(cluster: list[int], victims: list[int]) -> None:
    pool = hd.WorkerPool([victims[0], cluster[0]])
    assert hd.remotecall_fetch(hold, victims[0], pool) == victims[0]
    kill(victims[0])
    poll_for(lambda: len(pool) == 1)
    assert pool.take(timeout=10) == cluster[0]
    assert not pool.isready()


def test_a_dead_taker_that_waited_gets_nothing(cluster: list[int], victims: list[int]) -> None:
    pool = hd.WorkerPool(cluster[:1])
    pid = pool.take()
    hd.remote_do(hd.take, victims[0], pool)
    poll_for(lambda: waiting(pool) == 1)
    kill(victims[0])
    poll_for(lambda: victims[0] not in hd.procs() and waiting(pool) == 0)
    pool.put(pid)
    assert pool.take(timeout=10) == pid


@pytest.mark.parametrize("round_", range(5))
def test_takers_that_die_at_any_moment(round_: int, cluster: list[int], victims: list[int]) -> None:
    """They take and put as fast as they can; when they are dead, every worker is free."""
    pool = hd.WorkerPool(cluster)
    for pid in victims:
        for _ in range(3):
            hd.remote_do(take_and_put_for_ever, pid, pool)
    for _ in range(30 * round_):
        pool.put(pool.take())
    for pid in victims:
        kill(pid)
    poll_for(lambda: not set(victims) & set(hd.procs()))
    assert sorted(pool.take(timeout=10) for _ in cluster) == cluster
    assert not pool.isready()


def take_and_put_for_ever(pool: hd.WorkerPool) -> None:
    while True:
        pool.put(pool.take())


def test_a_taker_that_is_interrupted_gets_nothing(cluster: list[int], victims: list[int]) -> None:
    pool = hd.WorkerPool(cluster[:1])
    pid = pool.take()
    take = hd.remotecall(hd.take, victims[0], pool)
    poll_for(lambda: waiting(pool) == 1)
    hd.interrupt(victims[0])
    with pytest.raises(hd.RemoteException, match="KeyboardInterrupt"):
        take.fetch(timeout=10)
    assert waiting(pool) == 0
    pool.put(pid)
    assert pool.take(timeout=10) == pid


def test_a_timeout_that_comes_just_then_loses_nothing(cluster: list[int], victims: list[int]) -> None:
    pool = hd.WorkerPool(cluster[:1])
    takes = hd.remotecall(take_impatiently, victims[0], pool, 200)
    for _ in range(200):
        try:
            pid = pool.take(timeout=0.0005)
        except TimeoutError:
            continue
        pool.put(pid)
    assert sum(takes.fetch(timeout=60)) == 200
    assert pool.take(timeout=10) == cluster[0]


def take_impatiently(pool: hd.WorkerPool, times: int) -> list[int]:
    taken = refused = 0
    for _ in range(times):
        try:
            pid = pool.take(timeout=0.0005)
        except TimeoutError:
            refused += 1
        else:
            taken += 1
            pool.put(pid)
    return [taken, refused]


@pytest.mark.parametrize("kind", ["here", "here, with the driver", "elsewhere", "caching"])
def test_ctrl_c_at_any_moment(kind: str, run_python: ScriptRunner, transport: str) -> None:
    """In takes and in calls on a pool: when all calls have ended, every worker is free."""
    done = run_python(
        """
        import random, signal, sys
        import hybriddist as hd
        pids = hd.addprocs(2, transport=sys.argv[1])
        members = [1, *pids] if "driver" in sys.argv[2] else pids
        make = hd.CachingPool if sys.argv[2] == "caching" else hd.WorkerPool
        pool = hd.remotecall_fetch(make, pids[0] if sys.argv[2] == "elsewhere" else 1, members)
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGINT))
        struck = 0
        for number in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.random() * 0.003)
                while True:
                    hd.remotecall_fetch(abs, pool, 1)
                    hd.remotecall(abs, pool, 1)
                    hd.remotecall_wait(abs, pool, 1)
                    hd.remote_do(abs, pool, 1)
                    number % 2 or pool.isready()
            except KeyboardInterrupt:
                struck += 1
            free = [pool.take(timeout=10) for _ in members]
            assert sorted(free) == members and not pool.isready()
            for pid in free:
                pool.put(pid)
        print(struck)
        """,
        transport,
        kind,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "150\n"), done.stderr


# ---- owners ---------------------------------------------------------------------------------------------------------


def make_pool(pids: list[int]) -> hd.WorkerPool:
    return hd.WorkerPool(pids)


def test_a_pool_whose_owner_is_gone(
    cluster: list[int], victims: list[int], threads: concurrent.futures.ThreadPoolExecutor
) -> None:
    pool = hd.remotecall_fetch(make_pool, victims[0], cluster[:1])
    future = hd.remotecall(time.sleep, pool, 0.2)
    waits = threads.submit(pool.take)
    at_work = hd.remotecall_fetch(lambda pool: pool, cluster[1], pool)
    assert at_work == pool
    kill(victims[0])
    with pytest.raises(hd.ProcessExitedException):
        waits.result(timeout=10)
    for ask in (pool.take, pool.isready, pool.wait, lambda: len(pool), lambda: pool.put(2), lambda: pool.push(1)):
        with pytest.raises(hd.ProcessExitedException) as caught:
            ask()
        assert caught.value.pid == victims[0]
    with pytest.raises(hd.ProcessExitedException):
        hd.remotecall_fetch(abs, pool, 1)
    assert future.fetch() is None  # its worker lives, and there is nobody to put it back to


# ---- the default pool -----------------------------------------------------------------------------------------------


def test_the_default_pool_follows_the_workers(cluster: list[int], transport: str) -> None:
    pool = hd.default_worker_pool()
    assert len(pool) == 3
    added = hd.addprocs(2, transport=transport)
    assert len(pool) == 5
    assert {hd.remotecall_fetch(hd.myid, pool) for _ in range(5)} == {*cluster, *added}
    kill(added[0])
    hd.rmprocs(added[1])
    poll_for(lambda: len(pool) == 3)
    taken = [pool.take() for _ in cluster]
    assert sorted(taken) == cluster
    with pytest.raises(TimeoutError):
        pool.take(timeout=0.01)
    (another,) = hd.addprocs(1, transport=transport)
    assert pool.take(timeout=0) == another
    hd.rmprocs(another)
    for pid in taken:
        pool.put(pid)


def test_without_workers_the_default_pool_gives_the_driver(run_python: ScriptRunner, transport: str) -> None:
    done = run_python(
        """
        import sys, threading, time
        import hybriddist as hd
        pool = hd.default_worker_pool()
        print(len(pool), pool.isready(), pool.take(), pool.take(), pool.wait() is pool)
        print(hd.remotecall_fetch(hd.myid, pool), hd.remotecall(hd.myid, pool).fetch())
        pids = hd.addprocs(1, transport=sys.argv[1])
        print(len(pool), pool.take(), pool.put(1), pool.push(1) is pool, pool.isready())
        taken = []
        threads = [threading.Thread(target=lambda: taken.append(pool.take())) for _ in range(2)]
        for thread in threads:
            thread.start()
        while pool._channel.waiting() < 2:
            time.sleep(0.001)
        hd.rmprocs(pids)
        for thread in threads:
            thread.join(10)
        print(taken, len(pool), pool.isready())
        hd.addprocs(1, transport=sys.argv[1])
        hd.default_worker_pool(hd.WorkerPool([1]))
        hd.shutdown()
        again = hd.addprocs(2, transport=sys.argv[1])
        print(len(pool), len(hd.default_worker_pool()), hd.remotecall_fetch(hd.myid, pool) in again)
        print(hd.remotecall_fetch(len, again[0], pool))
        """,
        transport,
    )
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["0 True 1 1 True", "1 1", "1 2 1 True False", "[1, 1] 0 True", "2 2 True", "2"],
    ), done.stderr


# ---- caches ---------------------------------------------------------------------------------------------------------


def test_a_caching_pool_forgets_what_a_dead_worker_had(cluster: list[int], victims: list[int], transport: str) -> None:
    pool = hd.CachingPool(victims)
    f = functools.partial(sum, [1, 2, 3])
    assert [hd.remotecall_fetch(f, pool) for _ in range(4)] == [6] * 4
    (entry,) = pool._sent.values()
    assert sorted(entry.copies) == victims
    for pid in victims:
        kill(pid)
    poll_for(lambda: len(pool) == 0)
    (another,) = hd.addprocs(1, transport=transport)
    pool.push(another)
    assert hd.remotecall_fetch(f, pool) == 6
    assert list(entry.copies) == [another]
    hd.rmprocs(another)
