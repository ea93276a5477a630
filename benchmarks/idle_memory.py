"""What an idle worker weighs: its proportional set size, against that of an idle worker of a spawning `Pool`.

Proportional: a page shared by n processes counts one n-th, as workers forked from one template share most.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hybriddist as hd
from benchmarks.rounds import Plan, Round, Row, compare

WORKERS = 2
MEGABYTE = 1e6


def proportional_megabytes(ospids: Sequence[int]) -> list[float]:
    import psutil

    return [psutil.Process(ospid).memory_full_info().pss / MEGABYTE for ospid in ospids]


@contextmanager
def pool_workers() -> Iterator[Round]:
    others = {process.pid for process in multiprocessing.active_children()}
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(abs, range(10 * WORKERS), chunksize=1)
        started = [process.pid for process in multiprocessing.active_children()]
        ospids = [ospid for ospid in started if ospid is not None and ospid not in others]
        yield lambda: proportional_megabytes(ospids)
        pool.close()
        pool.join()


@contextmanager
def our_workers() -> Iterator[Round]:
    ospids = [hd.remotecall_fetch(os.getpid, pid) for pid in hd.addprocs(WORKERS)]
    try:
        yield lambda: proportional_megabytes(ospids)
    finally:
        hd.shutdown()


def idle(plan: Plan) -> list[Row]:
    """Each worker has answered one call, and waits."""
    with pool_workers() as pool, our_workers() as ours:
        return compare("idle worker, memory", ours, {"Pool worker, spawn": pool}, plan, unit="MB")
