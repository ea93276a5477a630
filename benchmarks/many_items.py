"""10,000 single small items: `pmap` against `Pool.map` and `ProcessPoolExecutor.map`, one item a request, 2 workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from time import perf_counter

import hybriddist as hd
from benchmarks.rounds import Plan, Round, Row, compare

ITEMS = 10_000
WORKERS = 2


def increment(value: int) -> int:
    return value + 1


def timed(run: Callable[[range], Iterable[int]], items: int) -> Round:
    """Turns of mapping so many items; the workers are warm, and the results are checked outside the time."""
    wanted = list(range(1, items + 1))

    def turn() -> list[float]:
        start = perf_counter()
        found = list(run(range(items)))
        seconds = perf_counter() - start
        if found != wanted:
            raise RuntimeError("a map returned something else than the function's values")
        return [seconds]

    list(run(range(10 * WORKERS)))
    return turn


@contextmanager
def pool_map(items: int) -> Iterator[Round]:
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        yield timed(lambda values: pool.map(increment, values, chunksize=1), items)
        pool.close()
        pool.join()


@contextmanager
def executor_map(items: int) -> Iterator[Round]:
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as executor:
        yield timed(lambda values: executor.map(increment, values, chunksize=1), items)


@contextmanager
def pmap(items: int) -> Iterator[Round]:
    hd.addprocs(WORKERS)
    try:
        yield timed(lambda values: hd.pmap(increment, values), items)
    finally:
        hd.shutdown()


def single_items(plan: Plan) -> list[Row]:
    """`pmap` with its default of one item a request, against both pools with ``chunksize=1``."""
    items = ITEMS // plan.scale
    with pool_map(items) as pool, executor_map(items) as executor, pmap(items) as ours:
        rivals = {"Pool.map": pool, "ProcessPoolExecutor.map": executor}
        return compare("pmap, 10,000 single items", ours, rivals, plan, bar=1 / 3)
