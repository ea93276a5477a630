"""100 MB and 1 MB as an argument and as a result, beside joblib and Ray, in the way that their users write it first.

All contenders get a new array each time, since joblib keeps the file that it has made of one. What each does:

* joblib, its loky processes: an argument goes into a file, which the worker maps read-only; a result through a pipe.
* Ray: a plain argument is put into its object store by the call, and a result by the worker; whoever gets it sees the
  store's memory, read-only. What was ``put`` before is passed by reference there, as a `SharedArray` is here, which is
  another benchmark.

Ours arrives as the receiver's own, writable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import hybriddist as hd
from benchmarks import peers
from benchmarks.large_arrays import ITEMS, Array, held, size
from benchmarks.round_trip import worker
from benchmarks.rounds import Plan, Round, Row, compare

BAR = 1 / 3
"""Ours takes at most so much of what the others take."""

SIZES = {"100 MB": (ITEMS, 1), "1 MB": (125_000, 20)}
"""In items of float64; and how many calls make a turn."""

WARM_UPS = 4
"""Turns before the first that counts: each worker of the others has been met, and has the array that it returns."""


def give(items: int) -> Array:
    return held(items)  # which is no function, but an object of `functools.cache`: not all take that


@dataclass(frozen=True)
class Contender:
    """How a library calls `size` with an array, and `give` with a number of items, on another process."""

    size: Callable[[Array], int]
    give: Callable[[int], Array]


def ours(pid: int) -> Contender:
    fetch = hd.remotecall_fetch
    return Contender(functools.partial(fetch, size, pid), functools.partial(fetch, give, pid))


def of_joblib(run: peers.Map) -> Contender:
    def call(function: Callable[[Any], Any], argument: Any) -> Any:
        (result,) = run(function, [argument])
        return result

    return Contender(functools.partial(call, size), functools.partial(call, give))


def of_ray(ray: Any) -> Contender:
    remote_size, remote_give = ray.remote(size), ray.remote(give)
    return Contender(
        lambda array: ray.get(remote_size.remote(array)),
        lambda items: ray.get(remote_give.remote(items)),
    )


def as_argument(contender: Contender, items: int) -> float:
    fresh = held(items).copy()
    start = perf_counter()
    received = contender.size(fresh)
    seconds = perf_counter() - start
    if received != fresh.nbytes:
        raise RuntimeError(f"{received} bytes have arrived, and not {fresh.nbytes}")
    return seconds


def as_result(contender: Contender, items: int) -> float:
    start = perf_counter()
    array = contender.give(items)
    seconds = perf_counter() - start
    if array[-1] != held(items)[-1]:
        raise RuntimeError("another array has arrived")
    return seconds


def timed(sample: Callable[[Contender, int], float], contender: Contender, items: int, calls: int) -> Round:
    def turn() -> list[float]:
        return [sample(contender, items) for _ in range(calls)]

    for _ in range(WARM_UPS):
        turn()
    return turn


def beside_others(plan: Plan) -> list[Row]:
    with ExitStack() as stack:
        # First those that start processes: forking one that has threads is not for everybody.
        found = peers.those_here(stack, {"joblib": peers.joblib, "Ray": peers.ray})
        makers = {"joblib": of_joblib, "Ray": of_ray}
        rivals = {name: makers[name](peer) for name, peer in found.items()}
        mine = ours(stack.enter_context(worker("shm")))
        rows = []
        for name, (items, calls) in SIZES.items():
            for what, sample in (("argument", as_argument), ("result", as_result)):
                turns = {
                    who: timed(sample, contender, items // plan.scale, calls)
                    for who, contender in {"": mine, **rivals}.items()
                }
                bars = dict.fromkeys(rivals, BAR)
                rows += compare(f"{name} {what}, beside others", turns.pop(""), turns, plan, bar=bars)
        return rows
