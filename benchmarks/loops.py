"""20 million items reduced in pure Python: `distributed` against two bare processes that fold one half each.

Both have new processes in each turn: a loop of pure Python runs up to a third faster or slower from one process to the
next, with where its memory lies, and all workers of one template have the luck of their template.
"""

from __future__ import annotations

import functools
import operator
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
        start = perf_counter()
        total = functools.reduce(operator.add, run())
        seconds = perf_counter() - start
    check(total, items)
    return [seconds]


def distributed(items: int) -> list[float]:
    """Two workers of a new template."""
    hd.addprocs(WORKERS)
    try:
        hd.distributed(body, range(10), reduce=operator.add)
        start = perf_counter()
        total = hd.distributed(body, range(items), reduce=operator.add)
        seconds = perf_counter() - start
    finally:
        hd.shutdown()
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
