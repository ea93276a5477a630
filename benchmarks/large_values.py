"""200 MB that every worker needs: a broadcast value, and what the function of a map has captured. 2 workers.

`broadcast`: 100 tasks on one array, the broadcast itself included, against the same tasks on arrays that the workers
have made for themselves: what is left when nothing has to be moved.

`captured`: 200 small items of a function that has captured the array, against the same, and against joblib (its workers
map a file) and Ray (an explicit ``put``) where these are installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import numpy as np

import hybriddist as hd
from benchmarks.large_arrays import Array, held
from benchmarks.rounds import Plan, Round, Row, compare

WORKERS = 2
ITEMS = 25_000_000
"""Of float64: 200 MB."""

TASKS = 100
SMALL_TASKS = 200


def heavy(array: Array, task: int) -> float:
    """Some 50 ms of work on a fifth of the array. What is bound by memory alone is a tenth slower on shared memory than
    on an array of the process's own, which numpy puts into huge pages."""
    part = len(array) // 5
    start = task % 5 * part
    return float(np.sin(array[start : start + part]).sum())


def light(array: Array, task: int) -> float:
    """Reads its own part: all tasks together read the array once."""
    part = len(array) // SMALL_TASKS
    return float(array[task * part : (task + 1) * part].sum())


def timed(run: Callable[[Array], Sequence[float]], array: Array, wanted: Sequence[float]) -> Round:
    """Turns of the tasks, each on a new array with the same content: one that somebody has stored before, and knows by
    its address, could have been written to meanwhile. The results are checked outside the time."""

    def turn() -> list[float]:
        fresh = array.copy()
        start = perf_counter()
        found = run(fresh)
        seconds = perf_counter() - start
        if not np.allclose(found, wanted):
            raise RuntimeError("the tasks returned something else than their values")
        return [seconds]

    turn()
    return turn


@contextmanager
def workers(items: int) -> Iterator[None]:
    """Workers that have an array of their own."""
    hd.addprocs(WORKERS)
    try:
        hd.pmap(lambda _: held(items).sum(), range(4 * WORKERS))
        yield
    finally:
        hd.shutdown()


def with_broadcast(array: Array) -> Sequence[float]:
    shared = hd.broadcast(array)
    return list(hd.pmap(lambda task: heavy(shared.value, task), range(TASKS)))


def with_captured(array: Array) -> Sequence[float]:
    return list(hd.pmap(lambda task: light(array, task), range(SMALL_TASKS)))


def with_own(work: Callable[[Array, int], float], tasks: int, array: Array) -> Sequence[float]:
    items = len(array)
    del array  # the function would capture it
    return list(hd.pmap(lambda task: work(held(items), task), range(tasks)))


# ---- peers, where they are installed --------------------------------------------------------------------------------


@contextmanager
def joblib_memmapping() -> Iterator[Callable[[Array], Sequence[float]]]:
    joblib = importlib.import_module("joblib")
    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        yield lambda array: list(parallel(joblib.delayed(light)(array, task) for task in range(SMALL_TASKS)))


@contextmanager
def ray_put() -> Iterator[Callable[[Array], Sequence[float]]]:
    ray = importlib.import_module("ray")
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(light)

    def run(array: Array) -> Sequence[float]:
        there = ray.put(array)
        return list(ray.get([remote.remote(there, task) for task in range(SMALL_TASKS)]))

    try:
        yield run
    finally:
        ray.shutdown()


PEERS: dict[str, Callable[[], Any]] = {"joblib": joblib_memmapping, "ray": ray_put}


def installed() -> dict[str, Callable[[], Any]]:
    """The peers that can be imported; a line for each that cannot."""
    found = {}
    for name, make in PEERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: no row for it", file=sys.stderr)
        else:
            found[name] = make
    return found


# ---- rows -----------------------------------------------------------------------------------------------------------


def broadcast(plan: Plan) -> list[Row]:
    items = ITEMS // plan.scale
    array = held(items)
    wanted = [heavy(array, task) for task in range(TASKS)]
    with workers(items):
        ours = timed(with_broadcast, array, wanted)
        alone = timed(functools.partial(with_own, heavy, TASKS), array, wanted)
        return compare("100 tasks on one broadcast array", ours, {"computing alone": alone}, plan, bar=1.05)


def captured(plan: Plan) -> list[Row]:
    items = ITEMS // plan.scale
    array = held(items)
    wanted = [light(array, task) for task in range(SMALL_TASKS)]
    with ExitStack() as stack:
        # First those that start processes: forking one that has threads is not for everybody.
        rivals = {name: timed(stack.enter_context(make()), array, wanted) for name, make in installed().items()}
        stack.enter_context(workers(items))
        rivals["computing alone"] = timed(functools.partial(with_own, light, SMALL_TASKS), array, wanted)
        ours = timed(with_captured, array, wanted)
        return compare("200 items, 200 MB captured", ours, rivals, plan, bar=1.1)
