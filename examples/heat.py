"""Heat that spreads over a plate: one array in shared memory, a band of its rows for each worker, halos between them.

    python examples/heat.py [--size N] [--steps N] [--workers N] [--image FILE.png] [--no-serial]

The plate is square, its left half hot at the beginning, and its edge stays cold. In each step a cell moves towards the
mean of its four neighbours. Of two layers in one `SharedArray` a step reads the one and writes the other. A worker
computes a band of rows, and for that reads one row of each neighbouring band: the halo. Nothing is copied, since all
see the same memory; but a worker must not be a step ahead of its neighbours. So each pair of neighbours has two
channels, and after each step a worker tells its neighbours and waits for their word::

    worker 2: rows 1 to 4    ──── done ───►   worker 3: rows 5 to 8    ──── done ───►   worker 4: rows 9 to 11
                             ◄─── done ────                            ◄─── done ────

It prints how much heat is left, checks the result against a serial run, and can save the plate as an image.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import hybriddist as hd

Grid = np.ndarray[Any, np.dtype[np.float64]]

RATE = 0.2
"""How far a cell moves towards its neighbours in a step; from 0.25 on the method is unstable."""


def first_layer(size: int) -> Grid:
    """The plate at the beginning: the left half hot, the rest and the edge cold."""
    plate = np.zeros((size + 2, size + 2))
    plate[1:-1, 1 : 1 + size // 2] = 1.0
    return plate


def step(old: Grid, new: Grid, rows: range) -> None:
    """Compute these rows of the next layer. Reads one row more on either side."""
    first, last = rows.start, rows.stop
    cell = old[first:last, 1:-1]
    around = (
        old[first - 1 : last - 1, 1:-1] + old[first + 1 : last + 1, 1:-1] + old[first:last, :-2] + old[first:last, 2:]
    )
    new[first:last, 1:-1] = cell + RATE * (around - 4 * cell)


def run_band(layers: hd.SharedArray, rows: range, steps: int, tell: list[Any], hear: list[Any]) -> None:
    """A worker's part: all steps of its band, in step with its neighbours.

    Args:
        layers: both layers, of shape (2, size + 2, size + 2); the first one is where it begins.
        rows: of the band.
        tell: channels to the neighbours.
        hear: channels from them.
    """
    for number in range(steps):
        step(layers[number % 2], layers[1 - number % 2], rows)
        for channel in tell:
            channel.put(number)
        for channel in hear:
            channel.take()


def bands(size: int, count: int) -> list[range]:
    """The rows of the plate, without its edge, in so many bands of about the same size."""
    cuts = [1 + size * i // count for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def parallel(size: int, steps: int, workers: list[int]) -> Grid:
    """The plate after so many steps, computed by all workers."""
    layers = hd.SharedArray((2, size + 2, size + 2), float, pids=workers)
    layers[0] = first_layer(size)
    parts = bands(size, len(workers))
    # One step's word can wait in a channel: nobody gets further ahead than that. It lives with who takes from it.
    down = [hd.RemoteChannel(lambda: hd.Channel(1), pid) for pid in workers[1 : len(parts)]]
    up = [hd.RemoteChannel(lambda: hd.Channel(1), pid) for pid in workers[: len(parts) - 1]]
    with hd.sync():
        for i, (rows, pid) in enumerate(zip(parts, workers, strict=False)):
            tell = up[i - 1 : i] * (i > 0) + down[i : i + 1]
            hear = down[i - 1 : i] * (i > 0) + up[i : i + 1]
            hd.spawnat(pid, run_band, layers, rows, steps, tell, hear)
    return np.array(layers[steps % 2])


def serial(size: int, steps: int) -> Grid:
    """The same, by this process alone."""
    old = first_layer(size)
    new = old.copy()
    for _ in range(steps):
        step(old, new, range(1, size + 1))
        old, new = new, old
    return old


def save_png(plate: Grid, file: Path) -> None:
    """Write the plate as an image: cold is blue, hot is red."""
    heat = np.clip(plate, 0, 1)
    colours = np.stack([heat, 0.25 + 0.5 * heat * (1 - heat), 1 - heat], axis=-1)
    pixels = (255 * colours).astype(np.uint8)
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # 0: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines.tobytes()))
        + chunk(b"IEND", b"")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Heat that spreads over a plate, computed by all workers.")
    parser.add_argument("--size", type=int, default=1500, metavar="N", help="cells along a side (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one for each usable CPU")
    parser.add_argument("--image", type=Path, metavar="FILE", help="save the plate there, as a PNG")
    parser.add_argument("--no-serial", action="store_true", help="do not compute serially as well, to compare")
    options = parser.parse_args()
    if min(options.size, options.steps, 1 if options.workers is None else options.workers) < 1:
        parser.error("--size, --steps and --workers must be at least 1")

    workers = hd.addprocs(options.workers)
    hd.everywhere("import numpy")  # all of them have it before the clock starts
    start = time.perf_counter()
    plate = parallel(options.size, options.steps, workers)
    seconds = time.perf_counter() - start
    print(f"heat at the beginning  {first_layer(options.size).sum():>14.2f}")
    print(f"after {options.steps:>6} steps     {plate.sum():>14.2f}")
    print(f"hottest cell           {plate.max():>14.4f}")
    if options.image is not None:
        save_png(plate, options.image)
        print(f"saved as {options.image}")
    print(f"\nparallel: {seconds:.2f} s with {len(workers)} workers")
    if not options.no_serial:
        start = time.perf_counter()
        expected = serial(options.size, options.steps)
        serial_seconds = time.perf_counter() - start
        print(f"serial:   {serial_seconds:.2f} s, {serial_seconds / seconds:.2f} times as long")
        if not np.array_equal(plate, expected):
            sys.exit("the results differ")
        print("the results are equal")


if __name__ == "__main__":
    main()
