"""The largest singular value of each of many matrices: one matrix an item, each to the next free worker.

    python examples/singular_values.py [--matrices N] [--size N] [--seed N] [--workers N] [--no-serial]

`pmap` sends the matrices through shared memory. Their sizes differ, so that some take eight times as long as others,
and it balances. It prints the values of the first few, how much was sent, and the time that the same takes serially.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

# One thread for each process: numpy's own threads would share the same CPUs with the workers, and the serial run would
# not be serial. It counts when numpy is loaded, and workers inherit it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

import hybriddist as hd  # noqa: E402

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def largest_singular_value(matrix: Matrix) -> float:
    """Of a matrix with independent normal entries it is close to the sum of the square roots of its sides."""
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def random_matrices(count: int, size: int, seed: int) -> list[Matrix]:
    """Square matrices with sides from half of ``size`` to ``size``, in random order."""
    generator = np.random.default_rng(seed)
    sides = generator.permutation(np.linspace(-(-size // 2), size, count).astype(int))
    return [generator.standard_normal((side, side)) for side in sides]


def show(matrices: list[Matrix], values: list[float], top: int) -> None:
    """Print the first few values, beside what theory expects of a random matrix."""
    print(f"{'matrix':<14}{'largest singular value':>24}{'2 * sqrt(side)':>18}")
    for matrix, value in list(zip(matrices, values, strict=True))[:top]:
        side = len(matrix)
        print(f"{f'{side} x {side}':<14}{value:>24.4f}{2 * side**0.5:>18.4f}")
    print(f"... {len(values)} in all, {sum(matrix.nbytes for matrix in matrices) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Largest singular values of random matrices, in parallel.")
    parser.add_argument("--matrices", type=int, default=40, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--size", type=int, default=700, metavar="N", help="side of the largest (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="0 or more (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one for each usable CPU")
    parser.add_argument("--no-serial", action="store_true", help="do not compute serially as well, to compare")
    options = parser.parse_args()
    if min(options.matrices, options.size, 1 if options.workers is None else options.workers) < 1 or options.seed < 0:
        parser.error("--matrices, --size and --workers must be at least 1, --seed at least 0")
    matrices = random_matrices(options.matrices, options.size, options.seed)

    workers = hd.addprocs(options.workers)
    hd.everywhere("import numpy.linalg")  # all of them have it before the clock starts
    start = time.perf_counter()
    values: list[float] = hd.pmap(largest_singular_value, matrices)
    seconds = time.perf_counter() - start
    show(matrices, values, 5)
    print(f"\nparallel: {seconds:.2f} s with {len(workers)} workers")
    if not options.no_serial:
        start = time.perf_counter()
        serial = [largest_singular_value(matrix) for matrix in matrices]
        serial_seconds = time.perf_counter() - start
        print(f"serial:   {serial_seconds:.2f} s, {serial_seconds / seconds:.2f} times as long")
        if not np.allclose(serial, values, rtol=1e-10):
            sys.exit("the results differ")
        print("the results are equal")


if __name__ == "__main__":
    main()
