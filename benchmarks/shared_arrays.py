"""What it costs to pass a `SharedArray`, whatever its size, against passing a number."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import hybriddist as hd
from benchmarks.round_trip import worker
from benchmarks.rounds import Plan, Round, Row, compare

CALLS = 3000

SIZES = {"1 KB": 125, "1 GB": 125_000_000}
"""Of float64."""


def take(_: Any) -> None:
    pass


def calls_with(pid: int, argument: Any, count: int) -> Round:
    """Turns of so many calls: the time of each."""

    def turn() -> list[float]:
        times = []
        for _ in range(count):
            start = perf_counter()
            hd.remotecall_fetch(take, pid, argument)
            times.append(perf_counter() - start)
        return times

    turn()
    return turn


def passing(plan: Plan) -> list[Row]:
    """As an argument of a call; the pages of the large one are never touched by the receiver."""
    count = CALLS // plan.scale
    rows: list[Row] = []
    with worker("shm") as pid:
        rivals = {"a number": calls_with(pid, 1, count)}
        for name, items in SIZES.items():
            array = hd.SharedArray(items // plan.scale)
            rows += compare(f"passing a SharedArray of {name}", calls_with(pid, array, count), rivals, plan, bar=1.2)
            del array
    return rows
