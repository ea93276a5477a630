"""Arrays of other sizes than 100 MB, between two workers, and over and over: against small calls and warm copies."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np

import hybriddist as hd
from benchmarks.large_arrays import ITEMS, Array, held, size, warm_copy
from benchmarks.round_trip import echo, worker
from benchmarks.rounds import Plan, Round, Row, compare

CALLS = 200
"""A turn of calls with arrays that are not large."""

REPETITIONS = 100


def timed(call: Callable[[], object], count: int) -> Round:
    """A turn of so many calls, each timed; one has been made before."""
    call()

    def turn() -> list[float]:
        samples = []
        for _ in range(count):
            start = perf_counter()
            call()
            samples.append(perf_counter() - start)
        return samples

    return turn


def with_copies(small: Round, items: int, copies: float) -> Round:
    """Small calls, each with the time of so many warm copies of an array added."""
    copy = warm_copy(items)

    def turn() -> list[float]:
        extra = copies * median(copy()[0] for _ in range(CALLS))
        return [seconds + extra for seconds in small()]

    return turn


def against_small_calls(label: str, items: int, plan: Plan, copies: float, bar: float) -> list[Row]:
    count = max(20, CALLS // plan.scale)
    with worker("shm") as pid:
        array = held(items)
        small = timed(lambda: hd.remotecall_fetch(echo, pid, 1), count)
        rivals = {f"small call + {copies} warm copies" if copies else "small call": with_copies(small, items, copies)}
        argument = timed(lambda: hd.remotecall_fetch(size, pid, array), count)
        result = timed(lambda: hd.remotecall_fetch(held, pid, items), count)
        return [
            *compare(f"{label} argument, shared memory", argument, rivals, plan, bar=bar),
            *compare(f"{label} result, shared memory", result, rivals, plan, bar=bar),
        ]


def one_megabyte(plan: Plan) -> list[Row]:
    """1 MB: at most a small call and 1.5 warm copies."""
    return against_small_calls("1 MB", 125_000, plan, 1.5, 1.0)


def sixty_four_kilobytes(plan: Plan) -> list[Row]:
    """64 KB: at most one and a half small calls."""
    return against_small_calls("64 KB", 8_192, plan, 0.0, 1.5)


# ---- between two workers ----------------------------------------------------------------------------------------


def sent_from_here(pid: int, items: int) -> float:
    """Runs on a worker: the seconds of one call to another with an array of this one's."""
    array: Array = held(items)
    start = perf_counter()
    hd.remotecall_fetch(size, pid, array)
    return perf_counter() - start


def fetched_to_here(pid: int, items: int) -> float:
    start = perf_counter()
    hd.remotecall_fetch(held, pid, items)
    return perf_counter() - start


@contextmanager
def two_workers() -> Iterator[tuple[int, int]]:
    try:
        first, second = hd.addprocs(2, transport="shm")
        yield first, second
    finally:
        hd.shutdown()


def exchange(plan: Plan) -> list[Row]:
    """Two workers directly: timed on one of them."""
    items = ITEMS // plan.scale
    rivals = {"one warm copy": warm_copy(items)}
    rows = []
    with two_workers() as (first, second):
        for label, function in [("to", sent_from_here), ("from", fetched_to_here)]:
            hd.remotecall_fetch(function, first, second, items)

            def turn(function: Callable[[int, int], float] = function) -> list[float]:
                return [hd.remotecall_fetch(function, first, second, items)]

            rows += compare(f"100 MB {label} another worker, shared memory", turn, rivals, plan, bar=2.0)
    return rows


# ---- computed in place ------------------------------------------------------------------------------------------


def filled_in_place(items: int) -> Array:
    array: Array = hd.empty(items)
    array.fill(1.5)
    return array


def filled(items: int) -> Array:
    return np.full(items, 1.5)


def in_place(plan: Plan) -> list[Row]:
    """A result that is computed where it is sent from, against one that is copied there."""
    items = ITEMS // plan.scale
    with worker("shm") as pid:
        own = timed(lambda: hd.remotecall_fetch(filled_in_place, pid, items), 1)
        other = timed(lambda: hd.remotecall_fetch(filled, pid, items), 1)
        rivals = {"an ordinary array": other}
        return compare("100 MB filled and returned, hd.empty", own, rivals, plan, bar=0.8)


# ---- over and over ----------------------------------------------------------------------------------------------


def page_faults() -> int:
    """Of this process so far, those that read nothing from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def steady(plan: Plan) -> list[Row]:
    """A hundred arrays one after the other: the last tenth against the first, and the page faults of both sides."""
    items, rows = ITEMS // plan.scale, []
    with worker("shm") as pid:
        array = held(items)
        calls: list[tuple[str, Callable[[], object]]] = [
            ("argument", partial(hd.remotecall_fetch, size, pid, array)),
            ("result", partial(hd.remotecall_fetch, held, pid, items)),
        ]
        for label, call in calls:
            call()
            before = page_faults() + hd.remotecall_fetch(page_faults, pid)
            samples = timed(call, REPETITIONS)()
            faults = page_faults() + hd.remotecall_fetch(page_faults, pid) - before
            tenth = REPETITIONS // 10
            first, last = median(samples[:tenth]), median(samples[-tenth:])
            nan = float("nan")
            name = f"100 MB {label}, {REPETITIONS} times"
            rows.append(Row(f"{name}: last tenth", last, nan, "first tenth", first, nan, "s", 1.2))
            pages = array.nbytes / resource.getpagesize()
            rows.append(
                Row(f"{name}: page faults each", faults / REPETITIONS, nan, "pages of one", pages, nan, "faults", 0.01)
            )
    return rows
