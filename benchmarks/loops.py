"""20 million items reduced in pure Python: `distributed` against two bare processes that fold one half each.

Both have new processes in each turn: a loop of pure Python runs faster or slower from one process to the next, with
where its memory lies, and all workers of one template have the luck of their template. Each computes once untimed: CPUs
that come from waiting may be slower at first than CPUs that come from computing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from time import perf_counter

import hybriddist as hd
from benchmarks import halves
from benchmarks.rounds import Plan, Row, compare

ITEMS = 20_000_000
WORKERS = 2


def body(value: int) -> int:
    return value & 7


def fold(part: range) -> int:
    return functools.reduce(operator.add, map(body, part))


def bare_processes(items: int) -> list[float]:
    """Two spawned processes, which are given their halves and answer with their sums."""
    half = items // WORKERS
    with halves.processes(fold, [range(half), range(half, items)], range(10)) as run:
        return timed(lambda: functools.reduce(operator.add, run()), items)


def distributed(items: int) -> list[float]:
    """Two workers of a new template."""
    hd.addprocs(WORKERS)
    try:
        return timed(lambda: hd.distributed(body, range(items), reduce=operator.add), items)
    finally:
        hd.shutdown()


def timed(reduce: Callable[[], int], items: int) -> list[float]:
    """Twice; how long the second time took."""
    for _ in range(2):
        start = perf_counter()
        total = reduce()
        seconds = perf_counter() - start
        check(total, items)
    return [seconds]


def check(total: int, items: int) -> None:
    """The sum, from its formula."""
    whole, rest = divmod(items, 8)
    if total != 28 * whole + rest * (rest - 1) // 2:
        raise RuntimeError(f"the sum of {items} items was wrong: {total}")


def reduction(plan: Plan) -> list[Row]:
    """`distributed` with a reducer, against bare processes with `functools.reduce`."""
    items = ITEMS // plan.scale
    bare = {"two bare processes": functools.partial(bare_processes, items)}
    return compare("`distributed`, sum of 20 million", functools.partial(distributed, items), bare, plan, bar=1.05)
