"""An array of more than 4 GiB through shared memory: no number on its way is one of 32 bits.

One direction of one transport, because fresh pages are what takes the time: 3 to 12 s, as the machine has them at hand.
The sender's are of zeros that were never touched, and are none. What streams do with such lengths is tested in
`tests/core/test_frames.py`, without the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest

import hybriddist as hd
from hybriddist import limits
from hybriddist.shm import segment

pytestmark = pytest.mark.leaks_by_module

SIZE = 4 * limits.GIB + 12_345
"""In bytes."""

PLACES = [0, 7, 2 * limits.GIB - 1, 2 * limits.GIB, 4 * limits.GIB - 1, 4 * limits.GIB, 4 * limits.GIB + 7, SIZE - 1]
"""Of the marks: the ends, and where numbers of 31 and 32 bits overflow."""


def marked() -> Any:
    array = np.zeros(SIZE, np.uint8)
    array[PLACES] = range(1, len(PLACES) + 1)
    return array


def looked_at(array: Any) -> tuple[int, list[int], int, int]:
    """The size, the marks, the sum of samples in between, and where in a cache line it begins."""
    return array.nbytes, array[PLACES].tolist(), int(array[:: limits.MIB - 1].sum()), array.ctypes.data % 64


RIGHT = SIZE, list(range(1, len(PLACES) + 1)), 1, 0


@pytest.fixture
def worker() -> Any:
    available, needed = psutil.virtual_memory().available, 10 * limits.GIB
    if available < needed:
        pytest.skip(f"{available / limits.GIB:.1f} GiB of memory are available, {needed // limits.GIB} are needed")
    total, free = segment.capacity()
    if min(total * limits.ARENA_BYTES_SHARE, free) < SIZE + limits.GIB:
        pytest.skip(f"/dev/shm has {total / limits.GIB:.1f} GiB: such an array would not lie in shared memory")
    try:
        yield hd.addprocs(1, transport="shm")[0]
    finally:
        hd.shutdown()


def test_more_than_4_gib(worker: int) -> None:
    assert hd.remotecall_fetch(looked_at, worker, marked()) == RIGHT
