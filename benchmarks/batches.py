"""Many small items with ``pmap(batch_size="auto")``: against the batching of others, uneven items, and many workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from time import perf_counter
from typing import Any

import hybriddist as hd
from benchmarks import halves, peers
from benchmarks.many_items import increment, timed
from benchmarks.peers import WORKERS
from benchmarks.rounds import Plan, Round, Row, compare

ITEMS = 100_000
UNEVEN_ITEMS = 10_000
CHEAPEST_STEPS = 500
"""Of a loop: about 3 µs. The dearest item takes a thousand times as long."""
CROWD = 64


@contextmanager
def cluster(count: int) -> Iterator[list[int]]:
    try:
        yield hd.addprocs(count)
    finally:
        hd.shutdown()


def pmap(f: Callable[[Any], Any], *args: Any) -> Any:
    """`hybriddist.pmap` with batches of adapting size."""
    return hd.pmap(f, *args, batch_size="auto")


def automatic(plan: Plan) -> list[Row]:
    """100,000 calls that do nothing, batched as each library sees fit. All have warm processes."""
    items = ITEMS // plan.scale
    contexts = {"Pool.map": peers.pool, "joblib": peers.joblib, "mpire": peers.mpire}
    with ExitStack() as stack:
        stack.enter_context(cluster(WORKERS))
        rivals = {
            name: timed(partial(rival, increment), items) for name, rival in peers.those_here(stack, contexts).items()
        }
        bars = {"Pool.map": 1 / 0.3, "joblib": 1 / 5, "mpire": 1 / 5}
        ours = timed(partial(pmap, increment), items)
        return compare("`pmap`, 100,000 items in batches", ours, rivals, plan, bar=bars)


# ---- uneven items ---------------------------------------------------------------------------------------------------


def loop(steps: int) -> int:
    """In C: how fast the interpreter runs a loop depends on where in its memory a process has it, by up to a third."""
    return sum(repeat(1, steps))


def costs(items: int) -> list[int]:
    """The cheapest first: who cuts chunks beforehand has all the dear ones in the last."""
    return [int(CHEAPEST_STEPS * 1000 ** (i / items)) for i in range(items)]


def loop_all(costs: list[int]) -> int:
    return sum(map(loop, costs))


def timed_run(run: Callable[[], Any]) -> Round:
    def turn() -> list[float]:
        start = perf_counter()
        run()
        return [perf_counter() - start]

    return turn


def uneven(plan: Plan) -> list[Row]:
    """10,000 items, the dearest a thousand times the cheapest, against a split that knew all costs beforehand."""
    items = costs(UNEVEN_ITEMS // plan.scale)
    parts = [items[first::WORKERS] for first in range(WORKERS)]
    with cluster(WORKERS), peers.pool() as pool, halves.processes(loop_all, parts, items[:1]) as ideal:
        pool(loop, items[:20])
        pmap(loop, items[:20])
        rivals = {"ideal split": timed_run(ideal), "Pool.map": timed_run(partial(pool, loop, items))}
        return compare("`pmap`, 10,000 uneven items", timed_run(partial(pmap, loop, items)), rivals, plan, bar=1.05)


# ---- many workers ---------------------------------------------------------------------------------------------------


def crowd(plan: Plan) -> list[Row]:
    """100,000 calls that do nothing, on 64 workers and on two of them."""
    items = ITEMS // plan.scale
    with cluster(CROWD) as pids:
        ours = timed(partial(pmap, increment), items)
        two = timed(partial(pmap, increment, hd.WorkerPool(pids[:2])), items)
        return compare("`pmap`, 64 workers", ours, {"2 of them": two}, plan, bar=1 / 0.7)
