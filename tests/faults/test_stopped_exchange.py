"""Two workers exchange buffers of generated sizes while both are stopped and continued all the time.

What is looked for: a cursor, a slot's state or a token that is only right if the other side keeps running. Each buffer
is checked by its crc32, which its receiver computes of what it got and its sender of what it sent.

``HYBRIDDIST_TEST_HAMMER_SECONDS`` sets how long it takes: a few seconds by default, a minute before a release.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hybriddist as hd

SECONDS = float(os.environ.get("HYBRIDDIST_TEST_HAMMER_SECONDS", "3"))

EDGES = [1, 8 << 10, (16 << 10) - 1, 16 << 10, 64 << 10, 256 << 10, (1 << 20) - 1, 1 << 20, 3 << 20]
"""In bytes: where a buffer's way changes (into the pickle, a shared segment, one of its own), and the ring's size."""

SIZES = st.one_of(st.sampled_from(EDGES), st.integers(1, 64 << 10), st.integers(64 << 10, 4 << 20))
MIXES = st.lists(st.lists(SIZES, min_size=1, max_size=4), min_size=1, max_size=6)


def check_and_answer(arrays: list[Any]) -> tuple[list[int], list[Any]]:
    """The checksums of what came, and the same arrays, changed in place."""
    sums = [zlib.crc32(array) for array in arrays]
    for array in arrays:
        array += 1
    return sums, arrays


def exchange(pid: int, mix: list[list[int]], seed: int) -> int:
    """Send each group of the mix to ``pid`` without waiting, then check all that comes back; the bytes sent."""
    generator = np.random.default_rng(seed)
    sent = [[generator.integers(0, 256, size, np.uint8) for size in group] for group in mix]
    futures = [hd.remotecall(check_and_answer, pid, group) for group in sent]
    for future, group in zip(futures, sent, strict=True):
        sums, answers = future.fetch(timeout=30)
        if sums != [zlib.crc32(array) for array in group]:
            raise ValueError(f"a buffer arrived changed: sizes {[array.size for array in group]}, seed {seed}")
        if [zlib.crc32(array) for array in answers] != [zlib.crc32(array + 1) for array in group]:
            raise ValueError(f"an answer arrived changed: sizes {[array.size for array in group]}, seed {seed}")
    return sum(array.size for group in sent for array in group)


@contextmanager
def stopping(ospids: list[int], seed: int) -> Iterator[list[int]]:
    """Stop one of the processes at random moments, for up to 5 ms each; the list counts how often."""
    choices, over, stops = random.Random(seed), threading.Event(), [0]

    def run() -> None:
        while not over.wait(choices.uniform(0, 5e-3)):
            ospid = choices.choice(ospids)
            os.kill(ospid, signal.SIGSTOP)
            over.wait(choices.uniform(0, 5e-3))
            os.kill(ospid, signal.SIGCONT)
            stops[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stops
    finally:
        over.set()
        thread.join()


def test_stopped_and_continued_while_they_exchange() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    moved = [0]
    a, b = hd.addprocs(2, transport="shm")
    try:

        @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(MIXES, MIXES, st.integers(0, 2**32))
        def both_ways(there: list[list[int]], back: list[list[int]], number: int) -> None:
            futures = [hd.remotecall(exchange, a, b, there, number), hd.remotecall(exchange, b, a, back, number + 1)]
            moved[0] += sum(future.fetch(timeout=60) for future in futures)

        ospids = [hd.remotecall_fetch(os.getpid, pid) for pid in (a, b)]
        end = time.monotonic() + SECONDS
        with stopping(ospids, seed) as stops:
            while time.monotonic() < end:
                both_ways()
        print(f"{moved[0] / 2**20:.0f} MiB sent, {stops[0]} stops")
        assert moved[0] > 0
        assert stops[0] > 0
    finally:
        hd.shutdown()
