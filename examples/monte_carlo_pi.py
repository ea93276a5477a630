"""Pi from random points: a reduction on all workers whose result does not depend on how many there are.

    python examples/monte_carlo_pi.py [--points N] [--part N] [--seed N] [--workers N] [--no-serial]

The points are cut into parts of a fixed size. Part i draws its points from a generator of its own, which is seeded
with the seed and i: so it counts the same whoever computes it, and the sum is the same for any number of workers.
`distributed` counts the parts on the workers and adds up there what each has counted; only one number comes back from
each. It prints the estimate and its error, and the time that the same takes serially.
"""

from __future__ import annotations

import argparse
import functools
import math
import operator
import sys
import time

import numpy as np

import hybriddist as hd


def count_inside(part: int, *, seed: int, points: int) -> int:
    """How many of a part's points, drawn from the unit square, lie within the quarter of the unit circle."""
    generator = np.random.default_rng([seed, part])
    squares = generator.random((2, points)) ** 2
    return int(np.count_nonzero(squares.sum(axis=0) <= 1))


def show(inside: int, points: int) -> None:
    """Print the estimate, and what its error is against what it should be about."""
    share = inside / points
    print(f"points            {points:>15,}")
    print(f"inside            {inside:>15,}")
    print(f"pi is about       {4 * share:>15.6f}")
    print(f"error             {abs(4 * share - math.pi):>15.6f}")
    print(f"standard error    {4 * math.sqrt(share * (1 - share) / points):>15.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate pi by random points, on all workers.")
    parser.add_argument("--points", type=int, default=400_000_000, metavar="N", help="at least (%(default)s)")
    parser.add_argument("--part", type=int, default=100_000, metavar="N", help="points of a part (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="0 or more (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one for each usable CPU")
    parser.add_argument("--no-serial", action="store_true", help="do not count serially as well, to compare")
    options = parser.parse_args()
    if min(options.points, options.part, 1 if options.workers is None else options.workers) < 1 or options.seed < 0:
        parser.error("--points, --part and --workers must be at least 1, --seed at least 0")
    parts = range(-(-options.points // options.part))  # whole parts: at least so many points as were asked for
    count = functools.partial(count_inside, seed=options.seed, points=options.part)

    workers = hd.addprocs(options.workers)
    hd.remotecall_all(hd.myid)  # all of them are there before the clock starts
    start = time.perf_counter()
    inside: int = hd.distributed(count, parts, reduce=operator.add)
    seconds = time.perf_counter() - start
    show(inside, len(parts) * options.part)
    print(f"\nparallel: {seconds:.2f} s with {len(workers)} workers")
    if not options.no_serial:
        start = time.perf_counter()
        serial = sum(map(count, parts))
        serial_seconds = time.perf_counter() - start
        print(f"serial:   {serial_seconds:.2f} s, {serial_seconds / seconds:.2f} times as long")
        if serial != inside:
            sys.exit("the results differ")
        print("the results are equal")


if __name__ == "__main__":
    main()
