"""20 million items reduced in pure Python: `distributed` against two bare processes that fold one half each."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import hybriddist as hd
from benchmarks import halves
from benchmarks.rounds import Plan, Round, Row, compare

ITEMS = 20_000_000
WORKERS = 2


def body(value: int) -> int:
    return value & 7


def fold(part: range) -> int:
    return functools.reduce(operator.add, map(body, part))


@contextmanager
def bare_processes(items: int) -> Iterator[Round]:
    """Two spawned processes, which are given their halves and answer with their sums."""
    half = items // WORKERS
    with halves.processes(fold, [range(half), range(half, items)], range(10)) as run:

        def turn() -> list[float]:
            start = perf_counter()
            total = functools.reduce(operator.add, run())
            seconds = perf_counter() - start
            check(total, items)
            return [seconds]

        yield turn


@contextmanager
def distributed(items: int) -> Iterator[Round]:
    hd.addprocs(WORKERS)

    def turn() -> list[float]:
        start = perf_counter()
        total = hd.distributed(body, range(items), reduce=operator.add)
        seconds = perf_counter() - start
        check(total, items)
        return [seconds]

    try:
        hd.distributed(body, range(10), reduce=operator.add)
        yield turn
    finally:
        hd.shutdown()


def check(total: int, items: int) -> None:
    """The sum, from its formula."""
    whole, rest = divmod(items, 8)
    if total != 28 * whole + rest * (rest - 1) // 2:
        raise RuntimeError(f"the sum of {items} items was wrong: {total}")


def reduction(plan: Plan) -> list[Row]:
    """`distributed` with a reducer, against bare processes with `functools.reduce`."""
    items = ITEMS // plan.scale
    with bare_processes(items) as bare, distributed(items) as ours:
        return compare("`distributed`, sum of 20 million", ours, {"two bare processes": bare}, plan, bar=1.05)
