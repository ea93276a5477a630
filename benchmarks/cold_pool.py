"""A script of `benchmarks.launch`: prints the seconds from a spawning `Pool(N)` to a result of each worker."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.synchronize import Barrier
from time import perf_counter


class Meeting:
    """Where the tasks wait for each other: so each worker holds one, and none can take two."""

    barrier: Barrier

    @classmethod
    def at(cls, barrier: Barrier) -> None:
        cls.barrier = barrier


def answer(_: int) -> int:
    Meeting.barrier.wait(60)
    return os.getpid()


def main() -> None:
    count = int(sys.argv[1])
    context = multiprocessing.get_context("spawn")
    start = perf_counter()
    with context.Pool(count, initializer=Meeting.at, initargs=(context.Barrier(count),)) as pool:
        ospids = set(pool.map(answer, range(count), chunksize=1))
        seconds = perf_counter() - start
        pool.close()
        pool.join()
    if len(ospids) != count:
        sys.exit(f"{count} workers answered from {len(ospids)} processes")
    print(seconds)


if __name__ == "__main__":
    main()
