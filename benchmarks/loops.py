"""20 million items reduced in pure Python: `distributed` against two bare processes that fold one half each."""

from __future__ import annotations

import functools
import multiprocessing
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from time import perf_counter

import hybriddist as hd
from benchmarks.rounds import Plan, Round, Row, compare

ITEMS = 20_000_000
WORKERS = 2


def body(value: int) -> int:
    return value & 7


def fold(commands: Connection) -> None:
    """Folds each range that comes down the pipe, until told None."""
    while (part := commands.recv()) is not None:
        commands.send(functools.reduce(operator.add, map(body, part)))


@contextmanager
def bare_processes(items: int) -> Iterator[Round]:
    """Two spawned processes, which are given their halves and answer with their sums."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(WORKERS)]
    processes = [context.Process(target=fold, args=(theirs,), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    half = items // WORKERS
    parts = [range(half), range(half, items)]

    def turn() -> list[float]:
        start = perf_counter()
        for (ours, _), part in zip(pairs, parts, strict=True):
            ours.send(part)
        total = functools.reduce(operator.add, [ours.recv() for ours, _ in pairs])
        seconds = perf_counter() - start
        check(total, items)
        return [seconds]

    try:
        for ours, _ in pairs:
            ours.send(range(10))
            ours.recv()  # it is up
        yield turn
        for ours, _ in pairs:
            ours.send(None)
    finally:
        for process, pair in zip(processes, pairs, strict=True):
            process.join(10)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
            for end in pair:
                end.close()


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
