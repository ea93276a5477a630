"""Maps inside maps: they end, and each worker computes for one at a time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

Span = tuple[int, float, float]

BATCHES = pytest.mark.parametrize(("batch_size", "at_once"), [(1, 1), (3, 3), ("auto", 2)])
"""Items of a batch of the user's own size that take long are run beside each other. Of batches that adapt two are under
way, and the second waits for the first for 40 ms: a busy machine may take longer."""


@pytest.fixture(scope="module")
def workers(transport: str, _driver: None) -> Iterator[list[int]]:
    pids = hd.addprocs(4, transport=transport)
    hd.remotecall_all(work, 0, procs=pids)  # all have this module now
    yield pids
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])


def work(_: Any) -> Span:
    begun = time.monotonic()
    time.sleep(0.005)
    return hd.myid(), begun, time.monotonic()


def most_at_once(spans: list[Span]) -> dict[int, int]:
    """By worker: how many items it was at in the same moment."""
    most = {}
    for worker in {pid for pid, _, _ in spans}:
        own = [(begun, ended) for pid, begun, ended in spans if pid == worker]
        most[worker] = max(sum(begun <= moment < ended for begun, ended in own) for moment, _ in own)
    return most


def nobody_is_engaged() -> bool:
    return not current().engagements._workers


@BATCHES
@pytest.mark.parametrize("outer_batch", [1, "auto"])
@pytest.mark.parametrize("outer_items", [2, 4, 10])
def test_a_worker_is_at_one_message_at_a_time(
    batch_size: Any, at_once: int, outer_items: int, outer_batch: Any, workers: list[int]
) -> None:
    def outer(_: int) -> list[Span]:
        return hd.pmap(work, range(12), batch_size=batch_size)

    spans = [span for part in hd.pmap(outer, range(outer_items), batch_size=outer_batch) for span in part]
    assert len(spans) == 12 * outer_items
    assert max(most_at_once(spans).values()) <= at_once
    assert nobody_is_engaged()


def test_three_deep(workers: list[int]) -> None:
    def outer(_: int) -> list[list[Span]]:
        return hd.pmap(middle, range(3))

    def middle(_: int) -> list[Span]:
        return hd.pmap(work, range(3))

    spans = [span for part in hd.pmap(outer, range(6)) for small in part for span in small]
    assert len(spans) == 6 * 3 * 3
    assert set(most_at_once(spans).values()) == {1}
    assert nobody_is_engaged()


def test_a_lazy_map_inside(workers: list[int]) -> None:
    def outer(_: int) -> list[Span]:
        return list(hd.imap_unordered(work, range(10)))

    spans = [span for part in hd.imap(outer, range(6)) for span in part]
    assert set(most_at_once(spans).values()) == {1}
    assert nobody_is_engaged()


@BATCHES
def test_a_map_of_a_worker_has_all_that_are_idle(batch_size: Any, at_once: int, workers: list[int]) -> None:
    def inner() -> list[Span]:
        return hd.pmap(work, range(100), batch_size=batch_size)

    for _ in range(3):  # one after the other: each lets go of those that it had
        spans = hd.remotecall_fetch(inner, workers[0])
        used = {pid for pid, _, _ in spans}
        # Batches that adapt open a lane only where the work that is left is worth it.
        assert len(used) > 1 if batch_size == "auto" else used == set(workers)
        assert max(most_at_once(spans).values()) <= at_once


def test_those_that_the_outer_map_needs_no_more_help_with_the_inner(workers: list[int]) -> None:
    def outer(items: int) -> list[Span]:
        return hd.pmap(work, range(items))

    parts = hd.pmap(outer, [1, 1, 1, 150])
    assert {pid for pid, _, _ in parts[-1]} == set(workers)


def test_an_outer_map_begins_even_if_all_work_for_a_map_of_a_worker(workers: list[int]) -> None:
    gate = hd.Future()

    def inner() -> list[Any]:
        return hd.pmap(lambda _: gate.fetch(), range(4))

    call = hd.remotecall(inner, workers[0])
    poll_for(lambda: len(current().engagements.engaged_by_others(1, hd.procs())) == 3)
    assert hd.pmap(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
    gate.put("open")
    assert call.fetch() == ["open"] * 4
    poll_for(nobody_is_engaged)


def end_with_an_error(_: int) -> None:
    raise ValueError("of the user")


def be_interrupted(_: int) -> None:
    threading.Timer(0.2, lambda: hd.remotecall_fetch(hd.interrupt, 1, hd.myid())).start()
    hd.pmap(time.sleep, [60] * 4)


def be_interrupted_twice(_: int) -> None:
    def interrupt() -> None:
        for _ in range(2):
            hd.remotecall_fetch(hd.interrupt, 1, hd.myid())

    interrupting = threading.Timer(0.2, interrupt)
    interrupting.start()
    try:
        hd.pmap(time.sleep, [60] * 4)
    finally:
        interrupting.join()  # both strike this call, and not the next one


def be_killed(_: int) -> None:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    hd.pmap(time.sleep, [60] * 4)


@pytest.mark.parametrize("end", [end_with_an_error, be_interrupted, be_interrupted_twice, be_killed])
def test_however_it_ends_nobody_stays_engaged(end: Callable[[int], None], workers: list[int]) -> None:
    def inner() -> None:
        hd.pmap(end, range(4)) if end is end_with_an_error else end(0)

    (pid,) = hd.addprocs(1) if end is be_killed else workers[:1]
    with pytest.raises((hd.RemoteException, hd.ProcessExitedException)):
        hd.remotecall_fetch(inner, pid)
    assert {pid for pid, _, _ in hd.pmap(work, range(100))} >= set(workers)
    poll_for(nobody_is_engaged)


def test_maps_that_follow_each_other_work_on_all(workers: list[int]) -> None:
    def outer(_: int) -> set[int]:
        return {pid for _ in range(3) for pid, _, _ in hd.pmap(work, range(40))}

    (used,) = hd.pmap(outer, range(1))
    assert used == set(workers)


def test_nobody_works_for_a_process_that_is_gone(workers: list[int]) -> None:
    """Its maps were inside an item: what it has given out runs for nobody."""

    def sleep_long(_: int) -> None:
        began.put(hd.myid())
        for _ in range(6000):
            time.sleep(0.01)

    def map_and_die() -> None:
        threading.Thread(target=lambda: [began.take() for _ in range(5)] and os._exit(3)).start()
        hd.pmap(sleep_long, range(10))

    (pid,) = hd.addprocs(1)
    began = hd.RemoteChannel(lambda: hd.Channel(10), workers[0])
    with pytest.raises(hd.ProcessExitedException):
        hd.remotecall_fetch(map_and_die, pid)
    for worker in workers:  # a call that comes now gets the main thread
        poll_for(lambda worker=worker: hd.remotecall_fetch(thread_name, worker) == "MainThread")


def thread_name() -> str:
    return threading.current_thread().name


def test_a_map_stays_in_its_pool(workers: list[int]) -> None:
    """Also while nobody in it is free, on a worker that is no member."""
    pool = hd.WorkerPool(workers[1:3])
    taken = [pool.take(), pool.take()]

    def inner() -> set[int]:
        return {pid for pid, _, _ in hd.pmap(work, pool, range(6))}

    call = hd.remotecall(inner, workers[0])
    member = hd.remotecall_fetch(inner, workers[1])  # it would wait for itself
    assert member == {workers[1]}
    assert not call.isready()
    for pid in taken:
        pool.put(pid)
    assert call.fetch() <= set(workers[1:3])


def test_a_pool_whose_members_are_gone(workers: list[int]) -> None:
    (pid,) = hd.addprocs(1)
    pool = hd.WorkerPool([pid])
    hd.rmprocs(pid)
    with pytest.raises(hd.RemoteException, match="no active worker available in the pool"):
        hd.remotecall_fetch(lambda: hd.pmap(work, pool, range(3)), workers[0])
