"""A `RemoteChannel` against calls, and a producer with a consumer on two workers against the bars of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

import hybriddist as hd
from benchmarks.rounds import Plan, Round, Row, compare

TRIPS = 2000
ITEMS = 5000
"""Small items of one turn."""

ARRAYS = 40
ARRAY_BYTES = 10_000_000
WARM_UP = 200

ITEM_SECONDS = 1 / 30_000
"""The bar for a small item."""

COPIES = 1 / 0.4
"""The bar for a large one, in warm copies of it."""


def echo(value: int) -> int:
    return value


def timed(action: Callable[[], Any], count: int) -> list[float]:
    samples = []
    for _ in range(count):
        start = perf_counter()
        action()
        samples.append(perf_counter() - start)
    return samples


@contextmanager
def workers(count: int) -> Iterator[list[int]]:
    try:
        yield hd.addprocs(count)
    finally:
        hd.shutdown()


def put_and_take(plan: Plan) -> list[Row]:
    """A put, and a take, against a call, all to one worker."""
    trips = TRIPS // plan.scale
    with workers(1) as (pid,):
        channel = hd.RemoteChannel(lambda: hd.Channel(1 << 20), pid)
        call = partial(hd.remotecall_fetch, echo, pid, 1)
        timed(call, WARM_UP)

        def put() -> list[float]:
            samples = timed(lambda: channel.put(1), trips)
            timed(channel.take, trips)
            return samples

        def take() -> list[float]:
            timed(lambda: channel.put(1), trips)
            return timed(channel.take, trips)

        rivals: dict[str, Round] = {"remotecall_fetch": lambda: timed(call, trips)}
        return [
            *compare("put into a RemoteChannel", put, rivals, plan, bar=1.3),
            *compare("take from a RemoteChannel", take, rivals, plan, bar=1.3),
        ]


def produce(channel: hd.RemoteChannel, item: Any, count: int) -> None:
    for _ in range(count):
        channel.put(item)


def consume(channel: hd.RemoteChannel, count: int) -> list[float]:
    """Seconds an item, in chunks of a tenth."""
    chunk = max(1, count // 10)
    samples = []
    for _ in range(count // chunk):
        start = perf_counter()
        for _ in range(chunk):
            channel.take()
        samples.append((perf_counter() - start) / chunk)
    return samples


def through(pids: list[int], owner: int, item: Any, count: int) -> list[float]:
    """One worker produces, the other consumes, and one of them has the channel."""
    channel = hd.RemoteChannel(lambda: hd.Channel(16), owner)
    producer = hd.remotecall(produce, pids[0], channel, item, count)
    samples = hd.remotecall_fetch(consume, pids[1], channel, count)
    producer.fetch()
    return samples


def small_items(plan: Plan) -> list[Row]:
    """Seconds an item, against the bar."""
    count = ITEMS // plan.scale
    with workers(2) as pids:
        rows = []
        for name, owner in (("producer", pids[0]), ("consumer", pids[1])):
            turn = partial(through, pids, owner, 1, count)
            bar: dict[str, Round] = {"30,000 a second": lambda: [ITEM_SECONDS]}
            rows += compare(f"a small item, channel at the {name}", turn, bar, plan, bar=1.0)
        return rows


def large_items(plan: Plan) -> list[Row]:
    """Seconds for an array of 10 MB, against a warm copy of it."""
    count = max(10, ARRAYS // plan.scale)
    array = np.ones(ARRAY_BYTES // 8)
    target = array.copy()
    with workers(2) as pids:
        rows = []
        for name, owner in (("producer", pids[0]), ("consumer", pids[1])):
            turn = partial(through, pids, owner, array, count)
            copies: dict[str, Round] = {"a warm copy": lambda: timed(lambda: np.copyto(target, array), count)}
            rows += compare(f"10 MB, channel at the {name}", turn, copies, plan, bar=COPIES)
        return rows
