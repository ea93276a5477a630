"""Worker pools: who is free, who is next, and that no worker is swallowed, whatever becomes of calls and takers."""

from __future__ import annotations

import concurrent.futures
import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

FLAGS: dict[str, threading.Event] = {}


def wait_for(name: str) -> int:
    """Blocks until somebody calls `let_go` on the same process."""
    if not FLAGS.setdefault(name, threading.Event()).wait(20):
        raise TimeoutError(name)
    return hd.myid()


def let_go(name: str) -> None:
    FLAGS.setdefault(name, threading.Event()).set()


def fail() -> None:
    raise ValueError("this was to be expected")


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


@pytest.fixture
def pool(cluster: list[int]) -> hd.WorkerPool:
    """Of two of the three workers."""
    return hd.WorkerPool(cluster[:2])


@pytest.fixture(params=["here", "elsewhere"])
def end(request: pytest.FixtureRequest, cluster: list[int], pool: hd.WorkerPool) -> Iterator[Callable[..., Any]]:
    """``end(verb, *args)``: an operation on the pool, by its owner, or by the third worker through a proxy."""
    if request.param == "here":
        yield lambda verb, *args, **kwargs: operate(pool, verb, *args, **kwargs)
    else:
        yield lambda verb, *args, **kwargs: hd.remotecall_fetch(operate, cluster[2], pool, verb, *args, **kwargs)


def operate(pool: hd.WorkerPool, verb: str, *args: Any, **kwargs: Any) -> Any:
    try:
        result = len(pool) if verb == "len" else getattr(pool, verb)(*args, **kwargs)
    except (TimeoutError, hd.HybridDistError) as error:
        return type(error), str(error)
    return "the pool" if result == pool and isinstance(result, hd.AbstractWorkerPool) else result


# ---- taking and putting ---------------------------------------------------------------------------------------------


def test_a_pool_gives_each_member_to_one(cluster: list[int], pool: hd.WorkerPool, end: Callable[..., Any]) -> None:
    assert end("isready")
    assert [end("take"), end("take")] == cluster[:2]
    assert not end("isready")
    assert end("len") == 2
    assert end("put", cluster[0]) == cluster[0]
    assert end("isready")
    assert end("take") == cluster[0]
    assert end("take", timeout=0.01)[0] is TimeoutError
    end("put", cluster[1])
    assert end("take", timeout=5) == cluster[1]


@pytest.mark.parametrize("kind", [list, tuple, set, iter, lambda pids: range(pids[0], pids[-1] + 1), lambda p: p + p])
def test_any_iterable_of_pids_makes_a_pool(kind: Callable[[Any], Any], cluster: list[int]) -> None:
    pool = hd.WorkerPool(kind(cluster))
    assert len(pool) == len(cluster)
    assert sorted(pool.take() for _ in cluster) == cluster
    assert not pool.isready()


def test_numpy_integers_are_pids(cluster: list[int]) -> None:
    np = pytest.importorskip("numpy")
    pool = hd.WorkerPool(np.array(cluster))
    assert type(pool.take()) is int
    assert pool.put(np.int64(cluster[0])) == cluster[0]


@pytest.mark.parametrize("pids", [[True], ["2"], [2.0], "23", 2, None, [None]])
def test_what_is_no_pid_makes_no_pool(pids: Any, cluster: list[int]) -> None:
    with pytest.raises(TypeError):
        hd.WorkerPool(pids)


def test_a_member_must_be_a_process(pool: hd.WorkerPool, end: Callable[..., Any]) -> None:
    with pytest.raises(hd.NoSuchProcessError):
        hd.WorkerPool([999_999])
    assert end("push", 999_999)[0] is hd.NoSuchProcessError
    with pytest.raises(TypeError):
        pool.push("2")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pool.put("2")  # type: ignore[arg-type]
    assert len(pool) == 2


def test_put_of_what_is_no_member_is_ignored_and_push_adds_it(cluster: list[int], end: Callable[..., Any]) -> None:
    assert end("put", cluster[2]) == cluster[2]
    assert end("len") == 2
    assert end("push", cluster[2]) == "the pool"
    assert end("len") == 3
    assert sorted(end("take") for _ in cluster) == cluster
    end("push", cluster[2])  # it is one, and is not free for that
    assert not end("isready")


def test_what_is_put_twice_is_free_once(cluster: list[int], pool: hd.WorkerPool) -> None:
    pid = pool.take()
    pool.put(pid)
    pool.put(pid)
    assert [pool.take(), pool.take()] == [cluster[1], pid]
    assert not pool.isready()


def test_wait_waits_until_a_worker_is_free(pool: hd.WorkerPool, end: Callable[..., Any]) -> None:
    assert end("wait", timeout=5) == "the pool"
    pids = [pool.take(), pool.take()]
    assert end("wait", timeout=0.01)[0] is TimeoutError
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        waits = threads.submit(end, "wait", timeout=20)
        poll_for(lambda: pool._channel.waiting() == 1)  # type: ignore[union-attr]
        pool.put(pids[1])
        assert waits.result() == "the pool"
    assert pool.take() == pids[1]  # it has only waited


def test_takers_are_served_in_their_order(cluster: list[int], pool: hd.WorkerPool) -> None:
    pids = [pool.take(), pool.take()]
    served: list[int] = []
    takers = []
    for number in range(6):
        if number % 2:  # of the owner, or through a proxy
            take = lambda number=number: (pool.take(20), served.append(number))  # noqa: E731
        else:
            take = lambda number=number: (operate_at(cluster[2], pool), served.append(number))  # noqa: E731
        takers.append(threading.Thread(target=take))
        takers[-1].start()
        poll_for(lambda number=number: pool._channel.waiting() == number + 1)  # type: ignore[union-attr,misc]
    for number in range(6):
        pool.put(pids[0])
        poll_for(lambda number=number: len(served) == number + 1)  # type: ignore[misc]
    for taker in takers:
        taker.join()
    assert served == list(range(6))


def operate_at(pid: int, pool: hd.WorkerPool) -> Any:
    return hd.remotecall_fetch(operate, pid, pool, "take", 20)


def test_the_functions_for_references_take_pools(cluster: list[int], pool: hd.WorkerPool) -> None:
    assert hd.isready(pool)
    assert hd.wait(pool) is pool
    assert hd.take(pool) == cluster[0]
    assert hd.take(pool, timeout=1) == cluster[1]
    assert hd.put(pool, cluster[0]) is pool
    assert hd.clear(pool) is pool
    with pytest.raises(TypeError, match="pids"):
        hd.clear(pool, cluster)  # type: ignore[call-overload]


def test_an_empty_pool_is_true_and_gives_nothing(cluster: list[int]) -> None:
    pool = hd.WorkerPool([])
    assert pool
    assert (len(pool), pool.isready()) == (0, False)
    with pytest.raises(hd.ClusterError, match=r"no active worker available in the pool WorkerPool\(\[\]\)"):
        pool.take()
    with pytest.raises(hd.ClusterError):
        hd.remotecall_fetch(abs, pool, 1)
    assert hd.remotecall_fetch(operate, cluster[0], pool, "take")[0] is hd.ClusterError
    with pytest.raises(TimeoutError):
        pool.wait(timeout=0.01)
    assert pool.push(cluster[0]).take() == cluster[0]


# ---- calls ----------------------------------------------------------------------------------------------------------


def by_call(pool: hd.AbstractWorkerPool, f: Any, /, *args: Any, **kwargs: Any) -> Any:
    return hd.remotecall(f, pool, *args, **kwargs).fetch()


def by_fetch(pool: hd.AbstractWorkerPool, f: Any, /, *args: Any, **kwargs: Any) -> Any:
    return hd.remotecall_fetch(f, pool, *args, **kwargs)


def by_wait(pool: hd.AbstractWorkerPool, f: Any, /, *args: Any, **kwargs: Any) -> Any:
    future = hd.remotecall_wait(f, pool, *args, **kwargs)
    assert future.isready()
    return future.fetch()


def by_spawnat(pool: hd.AbstractWorkerPool, f: Any, /, *args: Any, **kwargs: Any) -> Any:
    return hd.spawnat(pool, f, *args, **kwargs).fetch()


def by_fetchfrom(pool: hd.AbstractWorkerPool, f: Any, /, *args: Any, **kwargs: Any) -> Any:
    return hd.fetchfrom(pool, f, *args, **kwargs)


FAMILY = [by_call, by_fetch, by_wait, by_spawnat, by_fetchfrom]


def free(pool: hd.WorkerPool) -> int:
    assert pool._channel is not None
    return len(pool._channel)


def all_are_free(pool: hd.WorkerPool) -> bool:
    return free(pool) == len(pool)


@pytest.mark.parametrize("call", FAMILY)
def test_calls_take_turns_and_put_the_worker_back(
    call: Callable[..., Any], cluster: list[int], pool: hd.WorkerPool
) -> None:
    seen = set()
    for _ in range(20):
        seen.add(call(pool, hd.myid))
        poll_for(lambda: all_are_free(pool))
    assert seen == set(cluster[:2])
    assert call(pool, dict, timeout=1, where=2, pool=3, f=4) == {"timeout": 1, "where": 2, "pool": 3, "f": 4}


@pytest.mark.parametrize("call", FAMILY)
def test_failures_put_the_worker_back(call: Callable[..., Any], pool: hd.WorkerPool) -> None:
    for _ in range(5):
        with pytest.raises(hd.RemoteException) as caught:
            call(pool, fail)
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(hd.SerializeError):
            call(pool, abs, Unpicklable())
        with pytest.raises(TypeError):
            call(pool, "abs", 1)
    poll_for(lambda: all_are_free(pool))


def test_remote_do_puts_the_worker_back_at_once(cluster: list[int], pool: hd.WorkerPool) -> None:
    for _ in range(4):
        hd.remote_do(wait_for, pool, "do")
        assert all_are_free(pool)
    for pid in cluster:
        hd.remotecall_fetch(let_go, pid, "do")
    with pytest.raises(hd.SerializeError):
        hd.remote_do(abs, pool, Unpicklable())
    assert all_are_free(pool)


@pytest.mark.parametrize("step", [1, -1])
def test_as_many_calls_run_as_there_are_workers(step: int, cluster: list[int]) -> None:
    """In the order of the calls, and in the reverse: each end frees one worker."""
    pool = hd.WorkerPool(cluster)
    names = [f"calls {step} {number}" for number in range(3)]
    futures = [hd.remotecall(wait_for, pool, name) for name in names]
    assert not pool.isready()
    for count, name in enumerate(names[::step], 1):
        for pid in cluster:
            hd.remotecall_fetch(let_go, pid, name)
        poll_for(lambda count=count: free(pool) == count)  # type: ignore[misc]
    assert sorted(future.fetch() for future in futures) == cluster


def test_the_worker_is_out_until_the_call_has_ended(cluster: list[int]) -> None:
    """Also if its future is dropped."""
    pool = hd.WorkerPool(cluster[:1])
    hd.remotecall(wait_for, pool, "dropped")
    with pytest.raises(TimeoutError, match=r"no worker was free within 0\.05 seconds in WorkerPool"):
        pool.take(timeout=0.05)
    hd.remotecall_fetch(let_go, cluster[0], "dropped")
    assert pool.take(timeout=10) == cluster[0]


def test_the_worker_is_put_back_when_its_call_is_cancelled(cluster: list[int], transport: str) -> None:
    pool = hd.WorkerPool(cluster[:1])
    if transport == "memory":  # one interpreter for all: nothing can be interrupted in there
        future = hd.remotecall(wait_for, pool, "cancelled")
        poll_for(lambda: "cancelled" in FLAGS)
        assert future.cancel()
        assert not pool.isready()  # the call goes on
        hd.remotecall_fetch(let_go, cluster[0], "cancelled")
    else:
        future = hd.remotecall(time.sleep, pool, 100)
        assert future.cancel()
    assert pool.take(timeout=10) == cluster[0]
    with pytest.raises(concurrent.futures.CancelledError):
        future.fetch()


def test_the_own_process_may_be_a_member(cluster: list[int], transport: str) -> None:
    name = f"own {transport}"  # this process is the same one for all transports
    pool = hd.WorkerPool([1])
    kept: list[int] = []
    hd.remotecall_fetch(kept.append, pool, 1)
    hd.remotecall_wait(kept.append, pool, 2)
    poll_for(lambda: all_are_free(pool))
    future = hd.remotecall(wait_for, pool, name)
    assert not pool.isready()
    assert future.cancel()
    let_go(name)
    poll_for(lambda: all_are_free(pool))
    with pytest.raises(hd.RemoteException):
        hd.remotecall_fetch(fail, pool)
    hd.remotecall(fail, pool)
    hd.remote_do(kept.append, pool, 3)
    poll_for(lambda: kept == [1, 2, 3] and all_are_free(pool))


async def nap(seconds: float) -> int:
    import asyncio

    await asyncio.sleep(seconds)
    return hd.myid()


def test_a_coroutine_has_its_worker_until_its_end(cluster: list[int], transport: str) -> None:
    pool = hd.WorkerPool(cluster[:1])
    future = hd.remotecall(nap, pool, 0.1)
    assert not pool.isready()
    assert pool.take(timeout=10) == cluster[0]
    assert future.fetch() == cluster[0]


def test_more_calls_than_workers_from_many_threads(cluster: list[int]) -> None:
    pool = hd.WorkerPool(cluster)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        called = [threads.submit(hd.remotecall_fetch, pow, pool, number, 2) for number in range(200)]
        assert [call.result() for call in called] == [number**2 for number in range(200)]
    assert all_are_free(pool)


# ---- proxies --------------------------------------------------------------------------------------------------------


def used_from_here(pool: hd.WorkerPool, count: int) -> set[int]:
    return {hd.remotecall_fetch(hd.myid, pool) for _ in range(count)}


def used_from_there(pid: int, pool: hd.WorkerPool, count: int) -> set[int]:
    return hd.remotecall_fetch(used_from_here, pid, pool, count)


def test_a_pool_that_was_sent_has_the_same_members(cluster: list[int], pool: hd.WorkerPool) -> None:
    """On two levels: the driver's pool goes to a worker, and from there to another one."""
    assert hd.remotecall_fetch(used_from_here, cluster[2], pool, 10) == set(cluster[:2])
    assert hd.remotecall_fetch(used_from_there, cluster[2], cluster[0], pool, 10) == set(cluster[:2])
    poll_for(lambda: all_are_free(pool))


def test_calls_through_a_proxy_put_the_worker_back(cluster: list[int], pool: hd.WorkerPool) -> None:
    for call in FAMILY:
        assert hd.remotecall_fetch(call, cluster[2], pool, pow, 2, 5) == 32
        with pytest.raises(hd.RemoteException):
            hd.remotecall_fetch(call, cluster[2], pool, fail)
    hd.remotecall_fetch(hd.remote_do, cluster[2], abs, pool, 1)
    poll_for(lambda: all_are_free(pool))


def test_a_pool_comes_home_as_itself(cluster: list[int], pool: hd.WorkerPool) -> None:
    back = hd.remotecall_fetch(lambda pool: pool, cluster[2], pool)
    assert back == pool
    assert hash(back) == hash(pool)
    pid = back.take()
    assert free(pool) == 1
    pool.put(pid)
    assert free(back) == 2
    assert copy.copy(pool) is pool is copy.deepcopy(pool)
    assert pool != hd.WorkerPool(cluster[:2])


def make_pool(pids: list[int]) -> hd.WorkerPool:
    return hd.WorkerPool(pids)


def test_a_pool_of_a_worker_lives_as_long_as_a_proxy(cluster: list[int]) -> None:
    before = hd.live_references(cluster[0])
    pool = hd.remotecall_fetch(make_pool, cluster[0], cluster)
    assert "process" in repr(pool)
    assert len(pool) == 3
    assert sorted(pool.take() for _ in cluster) == cluster
    assert not pool.isready()
    for pid in cluster:
        pool.put(pid)
    assert used_from_here(pool, 12) == set(cluster)
    poll_for(partial(hd.remotecall_fetch, all_are_free, cluster[0], pool))  # a proxy's loans end on another thread
    assert hd.remotecall_fetch(used_from_here, cluster[0], pool, 12) == set(cluster)
    poll_for(lambda: hd.live_references(cluster[0]) != before)
    del pool
    poll_for(lambda: hd.live_references(cluster[0]) == before, what="the pool to be freed")


def test_a_pool_in_a_file_is_dead(cluster: list[int], pool: hd.WorkerPool) -> None:
    dead = pickle.loads(pickle.dumps(pool))
    with pytest.raises(hd.InvalidStateException, match="pickled outside of the cluster"):
        dead.take()
    with pytest.raises(hd.InvalidStateException):
        dead.isready()
    assert pool.take() == cluster[0]


# ---- the default pool -----------------------------------------------------------------------------------------------


def describe_default() -> tuple[int, set[int]]:
    pool = hd.default_worker_pool()
    return len(pool), used_from_here(pool, 12)  # type: ignore[arg-type]


def test_the_default_pool_has_all_workers(cluster: list[int]) -> None:
    pool = hd.default_worker_pool()
    assert pool is hd.default_worker_pool()
    assert describe_default() == (3, set(cluster))


def test_on_a_worker_the_default_pool_is_the_drivers(cluster: list[int]) -> None:
    pool = hd.default_worker_pool()
    assert hd.remotecall_fetch(hd.default_worker_pool, cluster[1]) == pool
    assert hd.remotecall_fetch(describe_default, cluster[1]) == (3, set(cluster))
    pids = [pool.take() for _ in cluster]
    assert not hd.remotecall_fetch(lambda: hd.default_worker_pool().isready(), cluster[0])
    for pid in pids:
        pool.put(pid)


def test_the_default_pool_can_be_set(cluster: list[int], pool: hd.WorkerPool) -> None:
    before = hd.default_worker_pool()
    try:
        assert hd.default_worker_pool(pool) is pool
        assert hd.default_worker_pool() is pool
        assert hd.remotecall_fetch(describe_default, cluster[2]) == (2, set(cluster[:2]))
        hd.remotecall_fetch(lambda pid: len(hd.default_worker_pool(hd.WorkerPool([pid]))), cluster[2], cluster[1])
        assert describe_default() == (1, {cluster[1]})
        with pytest.raises(TypeError):
            hd.default_worker_pool(cluster)  # type: ignore[arg-type]
    finally:
        hd.default_worker_pool(before)


# ---- pools of the user's own ----------------------------------------------------------------------------------------


class OnePerson(hd.AbstractWorkerPool):
    """The smallest pool there can be."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.log: list[str] = []
        self._free = threading.Semaphore(1)

    def push(self, pid: int) -> OnePerson:
        raise NotImplementedError

    def put(self, pid: int) -> int:
        self.log.append("put")
        self._free.release()
        return pid

    def take(self, timeout: float | None = None) -> int:
        if not self._free.acquire(timeout=timeout):
            raise TimeoutError
        self.log.append("take")
        return self.pid

    def __len__(self) -> int:
        return 1

    def isready(self) -> bool:
        return self._free._value > 0

    def wait(self, timeout: float | None = None) -> OnePerson:
        with self._free:
            return self


@pytest.mark.parametrize("call", FAMILY)
def test_a_pool_of_ones_own_works_with_all_calls(call: Callable[..., Any], cluster: list[int]) -> None:
    pool = OnePerson(cluster[1])
    assert [call(pool, hd.myid) for _ in range(3)] == [cluster[1]] * 3
    with pytest.raises(hd.RemoteException):
        call(pool, fail)
    hd.remote_do(abs, pool, 1)
    poll_for(pool.isready)
    assert pool.log == ["take", "put"] * 5
    assert pool


def test_a_pool_is_asked_for_six_methods(cluster: list[int]) -> None:
    assert hd.AbstractWorkerPool.__abstractmethods__ == {"push", "put", "take", "__len__", "isready", "wait"}
    with pytest.raises(TypeError, match="abstract"):
        hd.AbstractWorkerPool()  # type: ignore[abstract]
